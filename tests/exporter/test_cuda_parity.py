"""The graphs of CUDA bundles against ``transformers``, without a GPU.

ONNX Runtime's CPU provider runs prefill.onnx and decode.onnx of float16 bundles: where it has no float16 kernel, it
converts around the node. Of bfloat16 it knows nothing: test_cuda_graphs.py shows that those graphs are float16's in
another type. decode.native.onnx runs in numpy (tests/device_operators.py). The reference has the weights that the
bundle stores, read back, so that what is compared is the graphs.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bundles
import device_operators
import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import reference
import torch
from numpy.typing import NDArray

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.config import HeliumConfig
from helium_onnx.contract import GRAPH_FILES, NATIVE_GRAPH_FILES, WEIGHTS_FILE, Graph
from helium_onnx.evaluation.bundle_weights import BundleWeights
from helium_onnx.exporter.key_value_scales import LayerScales
from helium_onnx.recipe import MatrixSettings, Override, Precision, Quantization, Recipe, load_recipe

LENGTH, STEPS, CONTEXT = 64, 8, 96
RUN: tuple[Graph, Graph] = ("prefill", "decode")

#: Of the logits' scale at any position, for graphs whose activations are float16. These weights, large so that a wrong
#: RoPE shows, carry rounding on: transformers' own float16 is off its float32 by up to 2.4e-2 at the worst of 64
#: positions (by 4e-3 at most of them), and ours by up to 2.1e-2. Twice that is allowed here, and half as much again as
#: transformers' error in test_as_exact_as_transformers_in_float16, over all positions together.
ROUNDED = 5e-2
#: The same over an int8 cache, where what float16 rounds also tips codes, by a whole step: transformers' own is off by
#: up to 7.7e-2, and ours by up to 7.8e-2.
ROUNDED_CODES = 0.16
#: What a flipped RoPE must exceed, as a multiple of transformers' error in float16, over all positions together. Seen:
#: from 50 on.
FLIPPED = 30

#: Of the logits' scale, for the native graph. Its activations are float32, as the reference's: 2e-6, but where the
#: last bit of a key or value tips its rounding to the cache's type, by 2**-11 of it in float16 and, eight times as
#: rarely, by 2**-8 in bfloat16. Seen: 4.4e-4 of the one, 2.8e-4 of the other; eight times the first is allowed. What
#: is wired otherwise must exceed it a hundred times; seen: from 0.9 on.
KEPT = 4e-3
WRONG = 100 * KEPT

#: model_type, layers, key/value heads of 4 heads, tied embeddings.
MODELS: dict[str, tuple[str, int, int, bool]] = {
    "grouped": ("helium", 4, 2, False),
    "equal-heads": ("helium", 2, 4, False),
    "llama-grouped": ("llama", 2, 2, False),
    "tied": ("helium", 2, 2, True),
}

FOUR, PLAIN = MatrixSettings(4, 32, True, "float16"), MatrixSettings()
INT4 = dataclasses.replace(
    load_recipe("cuda-int4"),
    name="int4",
    quantization=dataclasses.replace(load_recipe("cuda-int4").quantization, method="round-to-nearest"),
)
#: Matrices of one layer in three ways: nothing can be packed, and gate and up differ.
MIXED = Recipe(
    "mixed",
    "for a test",
    "cuda",
    precision=Precision("float16", "float16"),
    quantization=Quantization(
        "round-to-nearest",
        0,
        FOUR,
        FOUR,
        PLAIN,
        overrides=(
            Override("model.layers.*.self_attn.v_proj", bits=8, block_size=64),
            Override("model.layers.1.self_attn.k_proj", bits=32),
            Override("model.layers.*.mlp.up_proj", bits=8, symmetric=False),
            Override("model.layers.0.mlp.down_proj", bits=32),
        ),
    ),
)
#: Keys and values in int8.
CODED = [
    dataclasses.replace(load_recipe(f"cuda-{short}"), name=f"{short}-kv8", precision=Precision(compute, "int8"))
    for short, compute in (("fp16", "float16"), ("bf16", "bfloat16"))
]
RECIPES = {recipe.name: recipe for recipe in (load_recipe("cuda-fp16"), load_recipe("cuda-bf16"), INT4, MIXED, *CODED)}
EXPORTS = [(model, recipe) for model in MODELS for recipe in RECIPES if recipe != "mixed" or model == "grouped"]


@dataclasses.dataclass(frozen=True)
class Exported:
    bundle: Path
    config: HeliumConfig
    model: Any
    dtype: Any  # of keys and values
    scales: list[LayerScales]  # of int8 ones, by layer

    @property
    def rounded(self) -> float:
        return ROUNDED_CODES if self.scales else ROUNDED

    def kept(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values as the cache keeps them."""
        if self.scales:
            scales = self.scales[layer]
            return tuple(
                ((x / (step := torch.from_numpy(steps)[:, None])).round().clamp(-128, 127) * step).to(x.dtype)
                for x, steps in ((keys, scales.key), (values, scales.value))
            )  # type: ignore[return-value]
        kind = torch.float16 if self.dtype == np.float16 else torch.bfloat16
        return keys.to(kind).float(), values.to(kind).float()

    def buffers(self, rows: int) -> dict[str, NDArray[Any]]:
        """Pasts of the whole context, none of it written: what is read too far shows as NaN, or the largest code."""
        shape = (rows, self.config.num_key_value_heads, CONTEXT, self.config.head_dim)
        kinds = [f"{i}.{kind}" for i in range(self.config.num_hidden_layers) for kind in ("key", "value")]
        unwritten = -128 if self.scales else np.nan
        return {f"past_key_values.{kind}": np.full(shape, unwritten, self.dtype) for kind in kinds}

    def expected(self, row: NDArray[np.int64]) -> NDArray[np.float32]:
        """The reference's logits of one row, ``[tokens, vocab_size]``, over keys and values as the cache keeps them."""
        return reference.logits_of(self.model, row, self.kept)

    def error_in_float16(self, row: NDArray[np.int64]) -> float:
        """What transformers is off by where it computes in float16: the yardstick of our graphs."""
        half = copy.deepcopy(self.model).half()
        half.model.rotary_emb = type(half.model.rotary_emb)(half.config)
        cache = reference.RoundedCache(self.kept) if self.scales else None
        with torch.inference_mode():
            logits = half(torch.from_numpy(row)[None], past_key_values=cache).logits[0].float().numpy()
        return root_mean_square(logits, self.expected(row))


def root_mean_square(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """The difference over all positions together, as a part of the logits' own root mean square."""
    return float(np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(theirs**2)))


def name_of(export: tuple[str, str]) -> str:
    return "-".join(export)


@pytest.fixture(scope="module", params=EXPORTS, ids=name_of)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    name, recipe = request.param
    model_type, layers, kv_heads, tie = MODELS[name]
    folder = tmp_path_factory.mktemp("cuda")
    source = reference.make_model(model_type, layers=layers, kv_heads=kv_heads, tie=tie)
    bundle = helium_onnx.export(reference.save(source, folder / "checkpoint"), folder / "b", recipe=RECIPES[recipe])
    config = HeliumConfig.from_dict(bundle.model_config, source="bundle")
    compute = np.dtype(ml_dtypes.bfloat16 if "bf16" in recipe else np.float16)
    weights = BundleWeights(bundle)
    model = as_stored(reference.make_model(model_type, layers=layers, kv_heads=kv_heads), weights, compute)
    scales = stored_scales(bundle) if recipe.endswith("kv8") else []
    yield Exported(bundle.path, config, model, np.dtype(np.int8) if scales else compute, scales)
    shutil.rmtree(folder)


def stored_scales(bundle: Bundle) -> list[LayerScales]:
    """Of an int8 cache, as the weights file has them: float32 ``[num_key_value_heads, head_dim]``."""
    data, found = (bundle.path / WEIGHTS_FILE).read_bytes(), {}
    for record in bundle.manifest.tensors:
        if record.name.endswith("_cache.scales"):
            assert (record.dtype, record.shape[::2]) == ("float32", (1, 1))
            values = np.frombuffer(data, np.float32, record.nbytes // 4, record.offset)
            found[record.name] = values.reshape(record.shape[1], record.shape[3]).copy()
    layers = range(len(found) // 2)
    return [
        LayerScales(*(found[f"model.layers.{i}.self_attn.{kind}_cache.scales"] for kind in ("key", "value")))
        for i in layers
    ]


def as_stored(model: Any, weights: BundleWeights, dtype: Any) -> Any:
    """An untied ``model`` with the weights of a bundle, and rotary tables rounded to ``dtype``."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weights.read(name)))
    exact = model.model.rotary_emb.forward
    kind = torch.float16 if dtype == np.float16 else torch.bfloat16
    model.model.rotary_emb.forward = lambda *a, **k: tuple(table.to(kind).float() for table in exact(*a, **k))
    return model


on_the_cpu = pytest.mark.parametrize(
    "exported", [export for export in EXPORTS if "bf16" not in export[1]], ids=name_of, indirect=True
)


class OnTheCpu:
    """prefill.onnx and decode.onnx in plain sessions. As on the device, lengths are inputs."""

    def __init__(self, exported: Exported, folder: Path | None = None) -> None:
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        self._sessions = {
            graph: ort.InferenceSession((folder or exported.bundle) / GRAPH_FILES[graph], options) for graph in RUN
        }

    def run(
        self, graph: Graph, ids: NDArray[np.int64], before: list[int], buffers: dict[str, NDArray[Any]]
    ) -> NDArray[np.float32]:
        """Logits of ``ids`` after ``before[row]`` tokens; ``buffers`` are brought up to date."""
        session = self._sessions[graph]
        names = [value.name for value in session.get_outputs()]
        feed = {
            "input_ids": ids,
            "seqlens_k": np.array(before, np.int32) + (ids.shape[1] - 1),
            "total_sequence_length": np.array(CONTEXT, np.int32),
            **buffers,
        }
        outputs = dict(zip(names, session.run(names, feed), strict=True))
        for name in buffers:
            buffers[name] = outputs[name.replace("past_key_values", "present")]
        logits: NDArray[np.float32] = outputs["logits"]
        assert logits.shape == (len(ids), 1 if graph == "prefill" else ids.shape[1], 320)
        np.testing.assert_array_equal(outputs["next_token_ids"], logits.argmax(-1))
        return logits


def row_of(length: int) -> NDArray[np.int64]:
    return reference.random_ids(1, length, seed=length)[0]


def assert_close(ours: NDArray[np.float32], theirs: NDArray[np.float32], tolerance: float) -> None:
    """Logits ``[positions, vocab_size]``, and the greedy token wherever rounding cannot turn it."""
    assert reference.error(ours, theirs) <= tolerance
    second, first = np.sort(theirs, axis=-1)[:, -2:].T
    clear = first - second > 2 * tolerance * np.abs(theirs).max()
    np.testing.assert_array_equal(ours.argmax(-1)[clear], theirs.argmax(-1)[clear])


@on_the_cpu
@pytest.mark.parametrize("chunks", [[LENGTH], [40, 23, 1]], ids=["in one go", "in chunks"])
def test_prefill_then_decode(exported: Exported, chunks: list[int]) -> None:
    row = row_of(LENGTH + STEPS)
    expected, graphs, buffers, done = exported.expected(row), OnTheCpu(exported), exported.buffers(1), 0
    for size in chunks:
        logits = graphs.run("prefill", row[None, done : done + size], [done], buffers)
        done += size
        assert_close(logits[0], expected[done - 1 : done], exported.rounded)
    steps = []
    for step in range(LENGTH, LENGTH + STEPS):
        steps.append(graphs.run("decode", row[None, step : step + 1], [step], buffers)[0, 0])
    assert_close(np.stack(steps), expected[LENGTH:], exported.rounded)
    for buffer in buffers.values():
        assert np.isfinite(buffer[:, :, : LENGTH + STEPS]).all()
        assert buffer.dtype == exported.dtype


@on_the_cpu
def test_decode_takes_several_tokens(exported: Exported) -> None:
    """A draft to verify: logits of each."""
    row, buffers = row_of(LENGTH), exported.buffers(1)
    graphs = OnTheCpu(exported)
    graphs.run("prefill", row[None, :-5], [0], buffers)
    logits = graphs.run("decode", row[None, -5:], [LENGTH - 5], buffers)
    assert_close(logits[0], exported.expected(row)[-5:], exported.rounded)


@on_the_cpu
def test_rows_of_different_lengths_decode_together(exported: Exported) -> None:
    rows, graphs = [row_of(length + STEPS) for length in (LENGTH, 9, 30)], OnTheCpu(exported)
    expected, alone = [exported.expected(row) for row in rows], [exported.buffers(1) for _ in rows]
    for row, buffers in zip(rows, alone, strict=True):
        graphs.run("prefill", row[None, :-STEPS], [0], buffers)
    buffers = {name: np.concatenate([buffers[name] for buffers in alone]) for name in alone[0]}
    for step in range(-STEPS, 0):
        before = [len(row) + step for row in rows]
        logits = graphs.run("decode", np.array([[row[step]] for row in rows]), before, buffers)
        for i in range(3):
            assert_close(logits[i], expected[i][step : step + 1 or None], exported.rounded)


@on_the_cpu
def test_as_exact_as_transformers_in_float16(exported: Exported) -> None:
    row = row_of(LENGTH)
    ours = root_mean_square(
        OnTheCpu(exported).run("decode", row[None], [0], exported.buffers(1))[0], exported.expected(row)
    )
    assert ours <= 1.5 * exported.error_in_float16(row)


@on_the_cpu
def test_a_flipped_rope_is_noticed(exported: Exported, tmp_path: Path) -> None:
    shutil.copytree(exported.bundle / "onnx", tmp_path / "onnx")
    for graph in RUN:
        assert bundles.flip_attribute(tmp_path / GRAPH_FILES[graph], "rotary_interleaved")
    row, graphs = row_of(LENGTH), OnTheCpu(exported, tmp_path)
    expected, limit = exported.expected(row), FLIPPED * exported.error_in_float16(row)
    assert root_mean_square(graphs.run("decode", row[None], [0], exported.buffers(1))[0], expected) > limit
    assert root_mean_square(graphs.run("prefill", row[None], [0], exported.buffers(1))[0], expected[-1:]) > limit


@on_the_cpu
def test_model_is_exact_under_left_padding(exported: Exported) -> None:
    """model.onnx, as other clients call it."""
    rows = [row_of(length) for length in (LENGTH, 5)]
    ids, mask = reference.padded(rows, "left")
    logits, _ = reference.Graphs(exported.bundle, exported.config, ["model"], exported.dtype.name).run(
        "model", ids, mask
    )
    assert logits.dtype == np.float16
    for i, row in enumerate(rows):
        assert_close(logits[i, mask[i] == 1].astype(np.float32), exported.expected(row), exported.rounded)


def decode_natively(exported: Exported, folder: Path, row: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits of each token of ``row``, fed one by one, ``[tokens, vocab_size]``."""
    graph = device_operators.NativeGraph(folder / NATIVE_GRAPH_FILES["native_decode"])
    buffers, logits = exported.buffers(1), []
    for position, token in enumerate(row):
        outputs = graph({"input_ids": np.array([[token]]), "seqlens_k": np.array([position], np.int32), **buffers})
        buffers = {name: outputs[name.replace("past_key_values", "present")] for name in buffers}
        logits.append(outputs["logits"][0, 0])
        np.testing.assert_array_equal(outputs["next_token_ids"], outputs["logits"].argmax(-1))
    return np.stack(logits)


def test_native_decode(exported: Exported) -> None:
    """Token by token from an empty past, so that every position is read and written."""
    row = row_of(LENGTH)
    assert_close(decode_natively(exported, exported.bundle, row), exported.expected(row), KEPT)


def test_native_decode_of_rows_of_different_lengths(exported: Exported) -> None:
    rows = [row_of(length) for length in (LENGTH, 9)]
    graph = device_operators.NativeGraph(exported.bundle / NATIVE_GRAPH_FILES["native_decode"])
    buffers, expected = exported.buffers(2), [exported.expected(row) for row in rows]
    for step in range(9):  # the second row waits at its first tokens until the first is so far that both end together
        before = [step + LENGTH - 9, step]
        if step == 0:
            for position in range(before[0]):
                feed = {"input_ids": rows[0][None, position : position + 1].repeat(2, 0), **buffers}
                outputs = graph({**feed, "seqlens_k": np.array([position, CONTEXT - 1], np.int32)})
                buffers = {name: outputs[name.replace("past_key_values", "present")] for name in buffers}
        ids = np.array([[row[at]] for row, at in zip(rows, before, strict=True)])
        outputs = graph({"input_ids": ids, "seqlens_k": np.array(before, np.int32), **buffers})
        buffers = {name: outputs[name.replace("past_key_values", "present")] for name in buffers}
        for i in range(2):
            assert_close(outputs["logits"][i], expected[i][before[i]][None], KEPT)


def test_a_flipped_native_rope_is_noticed(exported: Exported, tmp_path: Path) -> None:
    shutil.copytree(exported.bundle / "onnx", tmp_path / "onnx")
    assert bundles.flip_attribute(tmp_path / NATIVE_GRAPH_FILES["native_decode"], "interleaved")
    row = row_of(LENGTH)
    assert reference.error(decode_natively(exported, tmp_path, row), exported.expected(row)) > WRONG


@pytest.mark.parametrize("change", ["norm", "gate", "residual", "table", "epsilon"])
def test_a_native_graph_wired_otherwise_is_noticed(change: str, exported: Exported, tmp_path: Path) -> None:
    shutil.copytree(exported.bundle / "onnx", tmp_path / "onnx")
    path = tmp_path / NATIVE_GRAPH_FILES["native_decode"]
    model = onnx.load(path, load_external_data=False)
    WIRED_OTHERWISE[change](model.graph)
    path.write_bytes(model.SerializeToString())
    row = row_of(LENGTH)
    assert reference.error(decode_natively(exported, tmp_path, row), exported.expected(row)) > WRONG


def _linears(graph: onnx.GraphProto, attribute: str) -> list[onnx.NodeProto]:
    return [node for node in graph.node if any(a.name == attribute and a.i for a in node.attribute)]


def _other_norm(graph: onnx.GraphProto) -> None:
    first, second, *_ = _linears(graph, "norm")
    first.input[1], second.input[1] = second.input[1], first.input[1]


def _gate_and_up(graph: onnx.GraphProto) -> None:
    for node in _linears(graph, "gated"):
        each = [a for a in node.attribute if a.name in ("rows", "bits", "block_size", "has_zeros")]
        first = {a.name: a.ints[0] for a in each}
        up = 2 + (1 if first["bits"] == 16 else 2 + first["has_zeros"])  # behind x and the norm
        node.input[:] = [*node.input[:2], *node.input[up:], *node.input[2:up]]
        for attribute in each:
            attribute.ints[:] = reversed(attribute.ints)


def _residual_of_the_layer(graph: onnx.GraphProto) -> None:
    first, second, *_ = _linears(graph, "residual")
    second.input[1] = first.input[1]


def _tables(graph: onnx.GraphProto) -> None:
    node = next(node for node in graph.node if node.op_type.startswith("DeviceAttention"))
    node.input[4], node.input[5] = node.input[5], node.input[4]


def _epsilon(graph: onnx.GraphProto) -> None:
    for node in _linears(graph, "norm"):
        next(a for a in node.attribute if a.name == "epsilon").f = 1.0


WIRED_OTHERWISE: dict[str, Callable[[onnx.GraphProto], None]] = {
    "norm": _other_norm,
    "gate": _gate_and_up,
    "residual": _residual_of_the_layer,
    "table": _tables,
    "epsilon": _epsilon,
}
