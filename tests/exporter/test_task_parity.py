"""The graphs of each task without generation against its class of ``transformers``: both architectures, both paddings.

Quantized bundles are compared over their own weights, taken back from the bundle in float32; where activations are
rounded to 8 bits, so they are in the reference.
"""

from __future__ import annotations

import copy
import ctypes
import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import reference
import task_models
import tiny
import torch
import transformers
from numpy.typing import NDArray

import helium_onnx
from helium_onnx import kernels
from helium_onnx.bundle import Bundle
from helium_onnx.checkpoint import SCORE
from helium_onnx.evaluation.bundle_weights import BundleWeights
from helium_onnx.recipe import load_recipe
from helium_onnx.tasks import Task

LENGTHS = (70, 64, 9)
SIDES: tuple[reference.Padding, ...] = ("left", "right")


@dataclass(frozen=True)
class Exported:
    model: Any
    checkpoint: Path
    bundle: Bundle

    def run(self, graph: str, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """The graph in a plain session, without any code of our runtimes."""
        options = ort.SessionOptions()
        if graph == "native_model":
            options.register_custom_ops_library(str(kernels.LIBRARY))
        session = ort.InferenceSession(self.bundle.graph_path(graph), options)
        feed = {"input_ids": ids, "attention_mask": mask}
        output: NDArray[np.float32] = session.run(None, {i.name: feed[i.name] for i in session.get_inputs()})[0]
        return output


@pytest.fixture(scope="module", params=list(itertools.product(task_models.TEXT_TASKS, ("helium", "llama"))))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    task, model_type = request.param
    model = task_models.make_model(task, model_type)
    return model, reference.save(model, tmp_path_factory.mktemp("task") / f"{model_type}-{task}")


@pytest.fixture(scope="module", params=["cpu-fp32", "portable-fp32"])
def exported(request: pytest.FixtureRequest, checkpoint: tuple[Any, Path]) -> Exported:
    model, folder = checkpoint
    bundle = helium_onnx.export(folder, folder.parent / request.param, recipe=request.param)
    return Exported(model, folder, bundle)


@pytest.fixture(scope="module", params=["cpu-int8", "cpu-int4", "cpu-int4-fast"])
def quantized(request: pytest.FixtureRequest, checkpoint: tuple[Any, Path]) -> Exported:
    """With the bundle's weights in the model, and its rounding of activations."""
    model, folder = checkpoint
    bundle = helium_onnx.export(folder, folder.parent / request.param, recipe=request.param)
    return Exported(rounding(model, bundle), folder, bundle)


def rounding(model: Any, bundle: Bundle) -> Any:
    model = copy.deepcopy(model)
    weights = BundleWeights(bundle)
    prefix = "" if hasattr(model, "score") else "model."
    for name, parameter in model.named_parameters():
        if not name.startswith("score."):
            parameter.data = torch.from_numpy(weights.read(prefix + name))
    reference.round_inputs(model, load_recipe(bundle.manifest.recipe["name"]))
    if hasattr(model, "score"):
        model.score._forward_pre_hooks.clear()  # it is in float32
    return model


def in_8_bits(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - rows are padded on the right
    *,
    scaling: float,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention as CausalAttentionInt8 has it, for transformers: heads of 16, and at most 128 tokens."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = reference.rounded(query) @ reference.rounded(key).mT * scaling
    scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), -torch.inf)
    shares = (scores - scores.amax(-1, keepdim=True)).exp()
    scale = value.abs().amax(-1)[:, :, None] / 127
    mixed = reference.rounded(shares * scale) @ (reference.rounded(value) / scale.mT) / shares.sum(-1, keepdim=True)
    return mixed.transpose(1, 2), None


transformers.AttentionInterface.register("in_8_bits", in_8_bits)


def rows(seed: int = 1, lengths: tuple[int, ...] = LENGTHS) -> list[NDArray[np.int64]]:
    return [reference.random_ids(1, length, seed + i)[0] for i, length in enumerate(lengths)]


@pytest.mark.parametrize("side", SIDES)
def test_ragged_batches(exported: Exported, side: reference.Padding) -> None:
    ids, mask = reference.padded(rows(), side)
    ours, theirs = exported.run("model", ids, mask), task_models.output_of(exported.model, ids, mask)
    assert reference.error(task_models.real(ours, mask), task_models.real(theirs, mask)) <= reference.TOLERANCE
    assert ours.dtype == np.float32


@pytest.mark.parametrize("exported", ["cpu-fp32"], indirect=True)
def test_attention_of_our_own(exported: Exported) -> None:
    """The graph that ``load`` runs where our kernels are; it knows rows padded on the right alone."""
    ids, mask = reference.padded(rows(), "right")
    ours, theirs = exported.run("native_model", ids, mask), task_models.output_of(exported.model, ids, mask)
    assert reference.error(task_models.real(ours, mask), task_models.real(theirs, mask)) <= reference.TOLERANCE


def test_the_other_rope_is_noticed(exported: Exported, tmp_path: Path) -> None:
    other = {"helium": "llama", "llama": "helium"}[exported.model.config.model_type]
    tampered = shutil.copytree(exported.checkpoint, tmp_path / "tampered")
    classes = [exported.model.config.architectures[0].replace("Helium", "X").replace("Llama", "X")]
    tiny.edit_json(
        tampered / "config.json", model_type=other, architectures=[c.replace("X", other.capitalize()) for c in classes]
    )
    recipe = exported.bundle.manifest.recipe["name"]
    wrong = Exported(exported.model, tampered, helium_onnx.export(tampered, tmp_path / "wrong", recipe=recipe))
    ids, mask = reference.padded(rows(), "right")
    ours, theirs = wrong.run("model", ids, mask), task_models.output_of(exported.model, ids, mask)
    assert reference.error(task_models.real(ours, mask), task_models.real(theirs, mask)) > reference.MUTATION


def test_quantized(quantized: Exported, native_kernels: ctypes.CDLL) -> None:  # noqa: ARG001
    """Both graphs. A last bit that tips one rounding is carried on, so: many short texts, and their median."""
    for graph, attention in (("model", "eager"), ("native_model", "in_8_bits")):
        quantized.model.set_attn_implementation(attention)
        errors = []
        for seed in range(15):
            ids, mask = reference.padded(rows(3 * seed, (6, 4)), "right")
            theirs = task_models.real(task_models.output_of(quantized.model, ids, mask), mask)
            errors.append(reference.error(task_models.real(quantized.run(graph, ids, mask), mask), theirs))
        assert float(np.median(errors)) <= reference.TOLERANCE, graph


def test_the_score_is_not_quantized(quantized: Exported) -> None:
    stored = {tensor.name: tensor.dtype for tensor in quantized.bundle.manifest.tensors}
    has_score = quantized.bundle.task != "feature-extraction"
    assert any(name.startswith(SCORE) for name in stored) == has_score
    assert all(dtype == "float32" for name, dtype in stored.items() if name.startswith("score"))
    assert any(name.endswith(".quantized") for name in stored)


@pytest.mark.parametrize("task", task_models.TEXT_TASKS)
@pytest.mark.parametrize("recipe", ["cpu-fp32", "portable-fp32"])
def test_one_layer_and_equal_heads(task: Task, recipe: str, tmp_path: Path) -> None:
    model = task_models.make_model(task, "helium", num_hidden_layers=1, num_key_value_heads=4)
    bundle = helium_onnx.export(reference.save(model, tmp_path / "checkpoint"), tmp_path / "out", recipe=recipe)
    ids, mask = reference.padded(rows(), "left")
    ours = Exported(model, tmp_path, bundle).run("model", ids, mask)
    theirs = task_models.output_of(model, ids, mask)
    assert reference.error(task_models.real(ours, mask), task_models.real(theirs, mask)) <= reference.TOLERANCE


def test_a_row_of_padding_throughout(tmp_path: Path) -> None:
    """Finite, and in a batch it does not disturb its neighbour."""
    model = task_models.make_model("text-classification", "helium")
    bundle = helium_onnx.export(reference.save(model, tmp_path / "checkpoint"), tmp_path / "out", recipe="cpu-fp32")
    exported = Exported(model, tmp_path, bundle)
    ids, mask = reference.padded([rows()[0], np.array([], np.int64)], "right")
    ours = exported.run("model", ids, mask)
    assert np.isfinite(ours).all()
    alone = exported.run("model", ids[:1], mask[:1])
    assert reference.error(ours[:1], alone) <= 1e-6


def test_padding_inside_a_text(tmp_path: Path) -> None:
    """The rightmost token that is not padding counts, wherever others lie: as transformers has it."""
    model = task_models.make_model("text-classification", "helium")
    bundle = helium_onnx.export(reference.save(model, tmp_path / "checkpoint"), tmp_path / "out", recipe="cpu-fp32")
    ids = reference.random_ids(3, 12)
    ids[0, 5:8], ids[1, 9:], ids[2, -1] = 3, 3, 3
    mask = np.ones_like(ids)
    ours, theirs = Exported(model, tmp_path, bundle).run("model", ids, mask), task_models.output_of(model, ids, mask)
    assert reference.error(ours, theirs) <= reference.TOLERANCE


def test_a_classifier_without_a_pad_token(tmp_path: Path) -> None:
    """One row, its last token; a batch is refused by the graph itself."""
    model = task_models.make_model("text-classification", "llama", pad_token_id=None)
    bundle = helium_onnx.export(reference.save(model, tmp_path / "checkpoint"), tmp_path / "out", recipe="cpu-fp32")
    exported = Exported(model, tmp_path, bundle)
    ids = reference.random_ids(2, 12)
    ours = exported.run("model", ids[:1], np.ones_like(ids[:1]))
    assert reference.error(ours, task_models.output_of(model, ids[:1], np.ones_like(ids[:1]))) <= reference.TOLERANCE
    with pytest.raises(Exception, match=r"Got: 2 Expected: 1|invalid dimensions"):
        exported.run("model", ids, np.ones_like(ids))


def test_a_token_classifier_without_bias(tmp_path: Path) -> None:
    model = task_models.make_model("token-classification", "helium", token_classification_bias=False)
    assert model.score.bias is None
    bundle = helium_onnx.export(reference.save(model, tmp_path / "checkpoint"), tmp_path / "out", recipe="cpu-int8")
    assert "native_model" in bundle.manifest.graphs
    plain = helium_onnx.export(tmp_path / "checkpoint", tmp_path / "plain", recipe="cpu-fp32")
    ids, mask = reference.padded(rows(), "right")
    ours, theirs = Exported(model, tmp_path, plain).run("model", ids, mask), task_models.output_of(model, ids, mask)
    assert reference.error(task_models.real(ours, mask), task_models.real(theirs, mask)) <= reference.TOLERANCE
