"""kyutai/helium-1-2b's architecture (``model_type: llama``): every shipped recipe, against ``LlamaForCausalLM``.

The reference is what ``transformers`` reads of the same folder, so each form that a config.json may have is compared
too. A quantized bundle is compared over its own weights: the reference takes them back from the bundle in float32, and
the graphs get one change, ``accuracy_level`` 1 for 4, under which MatMulNBits does not round activations.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import onnx
import pytest
import reference
import tiny
import torch
import transformers
from numpy.typing import NDArray

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.config import HeliumConfig
from helium_onnx.contract import GRAPH_FILES, GRAPHS
from helium_onnx.evaluation.bundle_weights import BundleWeights
from helium_onnx.recipe import load_recipe
from helium_onnx.runtimes.native_session import NativeSession
from helium_onnx.runtimes.onnxruntime_session import OnnxRuntimeSession
from helium_onnx.verification import TOLERANCE as SESSIONS

LENGTH, STEPS = 64, 8
RECIPES = ("cpu-fp32", "portable-fp32", "cpu-int8", "cpu-int4", "cpu-int4-fast")
#: Fields of config.json, and those that are not there: each form in which theta, eps, heads and token ids are given.
MODELS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    # As published: theta at the top level, no head_dim, half as many keys and values as queries, ids up to 63999.
    "published": (
        {"vocab_size": 64_000, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4,
         "hidden_size": 128, "rope_theta": 20_000.0, "rms_norm_eps": 1e-5, "eos_token_id": [2, 63_999],
         "pad_token_id": None},
        ("head_dim", "rope_parameters"),
    ),
    # As transformers 5 saves it; one head of keys and values for four, tied embeddings, no end of text.
    "one-kv-head-tied": ({"num_key_value_heads": 1, "tie": True, "eos_token_id": None}, ()),
}  # fmt: skip


def write(folder: Path, name: str) -> Path:
    fields, absent = MODELS[name]
    tiny.write_checkpoint(folder, model_type="llama", dtype="F32", **fields)
    tiny.edit_json(folder / "config.json", *absent)
    return folder


def keep_half(_: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As our own kernels keep keys and values."""
    return keys.half().float(), values.half().float()


@dataclasses.dataclass(frozen=True)
class Exported:
    checkpoint: Path
    bundle: Bundle
    model: Any  # LlamaForCausalLM with the bundle's weights
    exact: Path  # the bundle's graphs, computing in float32

    @property
    def config(self) -> HeliumConfig:
        return HeliumConfig.from_dict(self.bundle.model_config, source="bundle")

    @property
    def quantized(self) -> bool:
        return self.bundle.manifest.quantization["method"] != "none"

    def text(self, length: int = LENGTH + STEPS, seed: int = 3) -> NDArray[np.int64]:
        """Ids of all the vocabulary, its last one among them."""
        ids = np.random.default_rng(seed).integers(4, self.config.vocab_size, length)
        ids[5] = self.config.vocab_size - 1
        return ids

    def graphs(self, only: tuple[Any, ...] = GRAPHS) -> reference.Graphs:
        return reference.Graphs(self.exact, self.config, only)


@pytest.fixture(scope="module", params=MODELS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("llama") / request.param, request.param)


@pytest.fixture(scope="module", params=RECIPES)
def exported(
    request: pytest.FixtureRequest,
    checkpoint: Path,
    native_kernels: ctypes.CDLL,  # noqa: ARG001
) -> Iterator[Exported]:
    folder = checkpoint.parent / request.param
    bundle = helium_onnx.export(checkpoint, folder / "bundle", recipe=request.param)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    assert type(model) is transformers.LlamaForCausalLM
    if bundle.manifest.quantization["method"] != "none":
        weights = BundleWeights(bundle)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())  # a tied head may be stored otherwise
        for name, parameter in model.named_parameters():
            parameter.data = torch.from_numpy(weights.read(name))
    exact = shutil.copytree(bundle.path, folder / "exact")
    for file in GRAPH_FILES.values():
        graph = onnx.load(exact / file, load_external_data=False)
        for node in graph.graph.node:
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    assert (node.op_type, attribute.i) == ("MatMulNBits", 4)
                    attribute.i = 1
        (exact / file).write_bytes(graph.SerializeToString())
    yield Exported(checkpoint, bundle, model, exact)
    shutil.rmtree(folder)


def test_the_config_is_read_as_transformers_reads_it(exported: Exported) -> None:
    config, theirs = exported.config, exported.model.config
    assert (config.model_type, config.rope_interleaved) == ("llama", False)
    assert config.rope_theta == theirs.rope_parameters["rope_theta"] == 20_000.0
    for name in ("head_dim", "rms_norm_eps", "num_key_value_heads", "vocab_size", "tie_word_embeddings"):
        assert getattr(config, name) == getattr(theirs, name), name
    eos = theirs.eos_token_id
    assert list(config.eos_token_ids) == (eos if isinstance(eos, list) else [] if eos is None else [eos])
    genai = json.loads((exported.bundle.path / "genai_config.json").read_text())["model"]["decoder"]
    assert (genai["head_size"], genai["num_key_value_heads"]) == (theirs.head_dim, theirs.num_key_value_heads)


def test_prefill_and_decode(exported: Exported) -> None:
    row, graphs = exported.text(), exported.graphs()
    expected = reference.logits_of(exported.model, row)
    for graph in ("model", "decode"):
        logits, _ = graphs.run(graph, row[None])
        assert reference.error(logits[0], expected) <= reference.TOLERANCE
    for prefill, then in (("prefill", "decode"), ("model", "model")):
        logits, past = graphs.run(prefill, row[None, :LENGTH])
        assert reference.error(logits[0, -1:], expected[LENGTH - 1 : LENGTH]) <= reference.TOLERANCE
        for step in range(LENGTH, LENGTH + STEPS):
            logits, past = graphs.run(then, row[None, step : step + 1], past=past)
            assert reference.error(logits[0], expected[step : step + 1]) <= reference.TOLERANCE


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(exported: Exported, side: reference.Padding) -> None:
    rows = [exported.text(length) for length in (LENGTH, LENGTH - 7, 6)]
    ids, mask = reference.padded(rows, side)
    logits, _ = exported.graphs(("model",)).run("model", ids, mask)
    for i, row in enumerate(rows):
        expected = reference.logits_of(exported.model, row)
        assert reference.error(logits[i, mask[i] == 1], expected) <= reference.TOLERANCE


def test_the_other_rope_is_noticed(exported: Exported, tmp_path: Path) -> None:
    """By each of the three graphs: from a checkpoint that calls itself a Helium, or by the attribute alone."""
    row = exported.text(LENGTH)
    expected = reference.logits_of(exported.model, row)
    if exported.bundle.manifest.recipe["graph"]["operators"] == "standard":
        other = shutil.copytree(exported.checkpoint, tmp_path / "other")
        tiny.edit_json(other / "config.json", model_type="helium", architectures=["HeliumForCausalLM"])
        wrong = helium_onnx.export(other, tmp_path / "wrong", recipe="portable-fp32").path
    else:
        wrong = shutil.copytree(exported.exact, tmp_path / "wrong")
        for file in GRAPH_FILES.values():
            name = "interleaved" if file == GRAPH_FILES["model"] else "rotary_interleaved"
            assert bundles.flip_attribute(wrong / file, name)
    graphs = reference.Graphs(wrong, exported.config)
    for graph in GRAPHS:
        logits, _ = graphs.run(graph, row[None])
        assert reference.error(logits[0], expected[-logits.shape[1] :]) > reference.MUTATION


def test_the_sessions(exported: Exported) -> None:
    """What users run: ONNX Runtime's kernels, and by ``load`` our own where the recipe has graphs for them.

    Quantized ones round activations, and so does the reference then, in the same blocks. What is left is float32's
    1e-6, but for the texts in which a last bit tips one rounding: hence many short texts, and their median.
    """
    model = copy.deepcopy(exported.model)
    cache = None
    if exported.quantized:
        reference.round_inputs(model, load_recipe(exported.bundle.manifest.recipe["name"]))
        cache = keep_half
    rows = [exported.text(6, seed) for seed in range(15)]
    with (
        contextlib.closing(OnnxRuntimeSession(exported.bundle, cache=False)) as plain,
        contextlib.closing(helium_onnx.load(exported.bundle.path)) as loaded,
    ):
        assert isinstance(loaded.session, NativeSession) == exported.quantized
        for session, kept in ((plain, None), (loaded.session, cache)):
            errors = []
            for row in rows:
                past = session.new_past(1)
                found = [session.run("prefill", row[None, :3], past)[0].copy()]
                found += [session.run("decode", row[None, i : i + 1], past)[0].copy() for i in range(3, len(row))]
                errors.append(reference.error(np.concatenate(found), reference.logits_of(model, row, kept)[2:]))
            assert np.median(errors) <= 1e-5
            assert max(errors) <= SESSIONS["quantized" if exported.quantized else "float32"]


# Quantized bundles round activations, and random weights leave two tokens as near as that.
@pytest.mark.parametrize("exported", ["cpu-fp32", "portable-fp32"], indirect=True)
def test_greedy_text_is_that_of_transformers(exported: Exported) -> None:
    with contextlib.closing(helium_onnx.load(exported.bundle.path)) as model:
        ids = torch.tensor([model.tokenizer.encode("Once upon a time in the")])
        out = exported.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
        (ours,) = model.generate("Once upon a time in the", max_new_tokens=16, temperature=0).generations
    theirs = out[0, ids.shape[1] :].tolist()
    assert list(ours.token_ids) == [i for i in theirs if i not in exported.config.eos_token_ids]


def test_verify_passes(exported: Exported) -> None:
    assert all(check.ok for check in helium_onnx.verify(exported.bundle.path))
    if exported.quantized:
        assert {"native_prefill", "native_decode"} <= set(exported.bundle.manifest.graphs)
