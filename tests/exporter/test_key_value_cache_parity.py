"""Graphs over a float16 or int8 cache, against ``transformers`` with keys and values rounded in the same way."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest
import reference
import torch
import transformers
from torch import Tensor
from transformers.masking_utils import eager_mask
from transformers.models.helium.modeling_helium import eager_attention_forward

from helium_onnx import contract
from helium_onnx.checkpoint import Checkpoint
from helium_onnx.contract import Graph
from helium_onnx.exporter.graphs import build_graphs, save_graph
from helium_onnx.exporter.key_value_scales import LayerScales, key_value_scales
from helium_onnx.exporter.quantize import DataFree
from helium_onnx.exporter.trace import trace
from helium_onnx.exporter.weights import WeightPlan
from helium_onnx.recipe import Precision, load_recipe

LENGTH, STEPS = 64, 16
Cache = Literal["float16", "int8"]

#: model_type, layers, key/value heads of 4 heads.
MODELS = {"equal-heads-2-layers": ("helium", 2, 4), "grouped-4-layers": ("helium", 4, 2), "llama": ("llama", 3, 2)}
#: Of the logits' scale. The reference rounds what the kernel rounds, so what is left are numbers at the edge between
#: two halves or two codes, which a last bit of float32 tips over. float16: by at most 2^-11, in each of at most 4
#: layers. int8: of some ten thousand codes a few, by 1/127 of one channel's largest magnitude, among 64 channels.
TOLERANCE: dict[str, float] = {"float16": 4 * 2**-11, "int8": 1 / 127 / 64**0.5}


@dataclasses.dataclass(frozen=True)
class Built:
    model: Any
    cache: Cache
    scales: list[LayerScales]
    graphs: reference.Graphs

    def rounded(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.cache == "float16":
            return keys.half().float(), values.half().float()
        scales = self.scales[layer]
        return (fake_quantized(keys, scales.key), fake_quantized(values, scales.value))

    def logits_of(self, row: np.ndarray) -> np.ndarray:
        return reference.logits_of(self.model, row, self.rounded)


def round_as_the_float16_kernel(model: Any) -> None:
    """Round to float16 what goes into the kernel (projections, rotary tables), rotated queries, and what comes out."""

    def halved(x: Any) -> Any:
        return x.half().float() if isinstance(x, Tensor) else tuple(map(halved, x))

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        output, weights = eager_attention_forward(module, halved(query), key, value, *args, **kwargs)
        return halved(output), weights

    transformers.AttentionInterface.register("float16_kernel", attention)
    transformers.AttentionMaskInterface.register("float16_kernel", eager_mask)
    model.config._attn_implementation = "float16_kernel"
    model.model.rotary_emb.register_forward_hook(lambda _module, _args, output: halved(output))
    for layer in model.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            projection.register_forward_hook(lambda _module, _args, output: halved(output))


def fake_quantized(x: Tensor, scales: np.ndarray) -> Tensor:
    """``x [batch, kv_heads, tokens, head_dim]`` as its codes give it back."""
    step = torch.from_numpy(scales)[:, None]
    return (x / step).round().clamp(-128, 127) * step


@pytest.fixture(
    scope="module", params=[(m, c) for m in MODELS for c in ("float16", "int8")], ids=lambda p: f"{p[0]}-{p[1]}"
)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    name, cache = request.param
    model_type, layers, kv_heads = MODELS[name]
    model = reference.make_model(model_type, layers=layers, kv_heads=kv_heads)
    folder = tmp_path_factory.mktemp("cache")
    checkpoint = Checkpoint.open(reference.save(model, folder / "checkpoint"))
    recipe = dataclasses.replace(load_recipe("cpu-fp32"), precision=Precision(key_value_cache=cache))
    # Other tokens than those of the tests, so that some are clipped.
    scales = key_value_scales(checkpoint, list(reference.random_ids(4, 64, seed=99)))
    if cache == "float16":
        round_as_the_float16_kernel(model)
    plan = WeightPlan()
    (folder / "onnx").mkdir()
    for graph, made in build_graphs(trace(checkpoint.config), plan, checkpoint.config, recipe, scales).items():
        save_graph(made, folder / contract.GRAPH_FILES[graph])
    plan.write(folder / contract.WEIGHTS_FILE, checkpoint, DataFree(checkpoint, recipe.quantization.method))
    yield Built(model, cache, scales, reference.Graphs(folder, checkpoint.config, cache=cache))
    shutil.rmtree(folder)


def rows_of(*lengths: int) -> list[np.ndarray]:
    return [reference.random_ids(1, length, seed=length)[0] for length in lengths]


def test_prefill_in_one_go(built: Built) -> None:
    (row,) = rows_of(LENGTH)
    expected = built.logits_of(row)
    prefill, present = built.graphs.run("prefill", row[None])
    assert all(tensor.dtype == built.cache for tensor in present)
    assert reference.error(prefill[0], expected[-1:]) <= TOLERANCE[built.cache]
    for graph in ("model", "decode"):
        logits, _ = built.graphs.run(graph, row[None])
        assert reference.error(logits[0], expected) <= TOLERANCE[built.cache]


@pytest.mark.parametrize("prefill", ["prefill", "model"])
def test_growing_past_over_16_steps(built: Built, prefill: Graph) -> None:
    """Keys and values that one graph made serve the other."""
    (row,) = rows_of(LENGTH + STEPS)
    expected = built.logits_of(row)
    _, past = built.graphs.run(prefill, row[None, :LENGTH])
    for step in range(LENGTH, LENGTH + STEPS):
        logits, past = built.graphs.run(
            "model" if prefill == "prefill" else "decode", row[None, step : step + 1], past=past
        )
        assert reference.error(logits[0], expected[step : step + 1]) <= TOLERANCE[built.cache]


@pytest.mark.parametrize("chunks", [[LENGTH], [40, 24], [1, 7, 8, 48]])
def test_chunked_prefill_then_decode_in_place(built: Built, chunks: list[int]) -> None:
    (row,) = rows_of(LENGTH + STEPS)
    expected = built.logits_of(row)
    buffers, length = built.graphs.past(1, 128), np.zeros(1, np.int64)
    untouched = [buffer[:, :, LENGTH + STEPS :].copy() for buffer in buffers]
    for size in chunks:
        done = int(length[0])
        logits = built.graphs.run_in_place("prefill", row[None, done : done + size], length, buffers)
        length += size
        assert reference.error(logits[0], expected[length[0] - 1 : length[0]]) <= TOLERANCE[built.cache]
    for step in range(LENGTH, LENGTH + STEPS):
        logits = built.graphs.run_in_place("decode", row[None, step : step + 1], length, buffers)
        length += 1
        assert reference.error(logits[0], expected[step : step + 1]) <= TOLERANCE[built.cache]
    for buffer, before in zip(buffers, untouched, strict=True):
        np.testing.assert_array_equal(buffer[:, :, LENGTH + STEPS :], before)


def test_ragged_rows_decode_in_place(built: Built) -> None:
    rows = rows_of(LENGTH + STEPS, 9 + STEPS, 30 + STEPS)
    expected = [built.logits_of(row) for row in rows]
    buffers, lengths = built.graphs.past(3, 128), np.zeros(3, np.int64)
    for i, row in enumerate(rows):
        slices = [buffer[i : i + 1] for buffer in buffers]
        built.graphs.run_in_place("prefill", row[None, :-STEPS], lengths[i : i + 1], slices)
        lengths[i] = len(row) - STEPS
    for step in range(-STEPS, 0):
        ids = np.array([[row[step]] for row in rows])
        logits = built.graphs.run_in_place("decode", ids, lengths, buffers)
        lengths += 1
        for i in range(3):
            assert reference.error(logits[i, 0], expected[i][step]) <= TOLERANCE[built.cache]


@pytest.mark.parametrize("side", ["left", "right"])
def test_model_under_padding(built: Built, side: reference.Padding) -> None:
    rows = rows_of(LENGTH + STEPS, 9 + STEPS, 1 + STEPS)
    expected = [built.logits_of(row) for row in rows]
    ids, mask = reference.padded([row[:-STEPS] for row in rows], side)
    logits, past = built.graphs.run("model", ids, mask)
    assert np.isfinite(logits).all()
    for i in range(3):
        assert reference.error(logits[i, mask[i] == 1], expected[i][:-STEPS]) <= TOLERANCE[built.cache]
    for step in range(-STEPS, 0):
        mask = np.concatenate((mask, np.ones((3, 1), np.int64)), axis=1)
        logits, past = built.graphs.run("model", np.array([[row[step]] for row in rows]), mask, past)
        for i in range(3):
            assert reference.error(logits[i, 0], expected[i][step]) <= TOLERANCE[built.cache]


def test_the_rounding_is_the_references(built: Built) -> None:
    """Codes are the reference's codes, but for the few that lie at the edge between two; halves by a last bit."""
    (row,) = rows_of(LENGTH)
    cache = reference.RoundedCache(built.rounded)
    with torch.inference_mode():
        built.model(torch.from_numpy(row)[None], past_key_values=cache)
    _, present = built.graphs.run("prefill", row[None])
    layer = cache.layers[0]
    for ours, theirs, scales in (
        (present[0], layer.keys, built.scales[0].key),
        (present[1], layer.values, built.scales[0].value),
    ):
        if built.cache == "float16":
            assert reference.error(ours.astype(np.float32), theirs.numpy()) <= 2 * 2**-11
            continue
        codes = (theirs / torch.from_numpy(scales)[:, None]).round().numpy()
        apart = np.abs(ours - codes)
        assert apart.max() <= 1
        assert np.count_nonzero(apart) <= apart.size / 1000


def test_the_order_of_tokens_is_noticed(built: Built) -> None:
    """What the tolerances must still tell apart: two tokens that have changed places."""
    (row,) = rows_of(LENGTH)
    logits, _ = built.graphs.run("decode", row[None])
    other = row.copy()
    other[[10, 40]] = other[[40, 10]]
    assert reference.error(logits[0, -1:], built.logits_of(other)[-1:]) > 100 * TOLERANCE[built.cache]
