"""Weights read back from a bundle: exactly the checkpoint's where float32 is stored, near them where bits are few, and
what the kernels of ONNX Runtime mean by the stored bytes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tiny
from numpy.typing import NDArray

import helium_onnx
from helium_onnx.checkpoint import Checkpoint, expected_tensors
from helium_onnx.errors import BundleError
from helium_onnx.evaluation.bundle_weights import BundleWeights
from helium_onnx.evaluation.layers import layer_errors
from helium_onnx.evaluation.reference import embed
from helium_onnx.progress import silent
from helium_onnx.recipe import MatrixSettings, Quantization, Recipe, load_recipe


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Columns of 64 and 96: 96 is no multiple of a block of 64."""
    return Checkpoint.open(tiny.write_checkpoint(tmp_path_factory.mktemp("weights") / "checkpoint"))


def quantized(bits: int, block: int, symmetric: bool, **others: MatrixSettings) -> Recipe:
    settings = MatrixSettings(bits, block, symmetric)  # type: ignore[arg-type]
    kinds = {"linear": settings, "head": settings, "embedding": settings, **others}
    return Recipe("own", "a test's", quantization=Quantization("round-to-nearest", 1, **kinds))


def nearest(name: str) -> Recipe:
    """A shipped recipe's ways to store; GPTQ itself moves weights further than rounding does."""
    recipe = load_recipe(name)
    return dataclasses.replace(recipe, quantization=dataclasses.replace(recipe.quantization, method="round-to-nearest"))


def weights(checkpoint: Checkpoint, folder: Path, recipe: str | Recipe) -> BundleWeights:
    return BundleWeights(helium_onnx.export(checkpoint.folder, folder / "bundle", recipe=recipe))


@pytest.mark.parametrize("recipe", ["cpu-fp32", "portable-fp32"])
def test_float32_is_the_checkpoint_to_the_bit(recipe: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    stored = weights(checkpoint, tmp_path, recipe)
    for name in expected_tensors(checkpoint.config):
        np.testing.assert_array_equal(stored.read(name), checkpoint.read(name), err_msg=name)


@pytest.mark.parametrize("recipe", ["cuda-fp16", "qnn-fp16", "coreml-fp16"])
def test_float16_is_the_checkpoint_rounded(recipe: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """As float32, whichever way round a matrix is stored."""
    stored = weights(checkpoint, tmp_path, recipe)
    for name in expected_tensors(checkpoint.config):
        found = stored.read(name)
        assert found.dtype == np.float32 and found.flags.c_contiguous
        rounded = checkpoint.read(name).astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(found, rounded, err_msg=name)


@pytest.mark.parametrize(
    ("recipe", "bound"),
    [
        (nearest("cpu-int4"), 0.12),
        (nearest("cpu-int8"), 0.01),
        (quantized(4, 16, True), 0.12),
        (quantized(4, 32, False), 0.12),
        (quantized(8, 64, False), 0.01),
        (quantized(8, 256, True), 0.02),
        (quantized(4, 64, False, head=MatrixSettings(8, 16, True), embedding=MatrixSettings()), 0.12),
    ],
)
def test_quantized_weights_are_near(recipe: str | Recipe, bound: float, checkpoint: Checkpoint, tmp_path: Path) -> None:
    stored = weights(checkpoint, tmp_path, recipe)
    for name, shape in expected_tensors(checkpoint.config).items():
        ours, theirs = stored.read(name), checkpoint.read(name)
        assert (ours.shape, ours.dtype) == (shape, np.float32)
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        if len(shape) == 1:
            assert error == 0, name
        else:
            assert error < bound, name


def test_a_head_tied_to_the_embedding(tmp_path: Path) -> None:
    tied = Checkpoint.open(tiny.write_checkpoint(tmp_path / "tied", tie=True))
    settings = MatrixSettings(4, 32, False)
    for index, recipe in enumerate(("cpu-fp32", quantized(4, 32, False), quantized(8, 32, True, embedding=settings))):
        stored = weights(tied, tmp_path / str(index), recipe)
        embedding = tied.read("model.embed_tokens.weight")
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert np.linalg.norm(stored.read(name) - embedding) < 0.12 * np.linalg.norm(embedding)


def test_they_are_what_the_kernel_computes_with(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """One MatMulNBits of the bundle's own graph, run alone, against a product with the matrix read back."""
    stored = weights(checkpoint, tmp_path, quantized(4, 32, False))
    bundle = stored.bundle
    model = onnx.load(bundle.graph_path("decode"))
    node = next(n for n in model.graph.node if n.op_type == "MatMulNBits" and "layers.1.mlp.down" in n.input[1])
    x = np.random.default_rng(0).standard_normal((5, 96)).astype(np.float32)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [value(node.input[0], onnx.TensorProto.FLOAT, [5, 96])],
        [value(node.output[0], onnx.TensorProto.FLOAT, [5, 64])],
        [tensor for tensor in model.graph.initializer if tensor.name in node.input],
    )
    alone = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=10)
    session = ort.InferenceSession(alone.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {node.input[0]: x})
    wanted = x @ stored.read("model.layers.1.mlp.down_proj.weight").T
    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_a_tensor_that_is_not_stored(checkpoint: Checkpoint, tmp_path: Path) -> None:
    bundle = helium_onnx.export(checkpoint.folder, tmp_path / "bundle", recipe="cpu-fp32")
    kept = tuple(record for record in bundle.manifest.tensors if "layers.0.mlp.up" not in record.name)
    stored = BundleWeights(dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, tensors=kept)))
    with pytest.raises(BundleError, match=r"layers\.0\.mlp\.up_proj"):
        stored.read("model.layers.0.mlp.up_proj.weight")


def test_a_graph_that_does_not_read_the_codes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    bundle = weights(checkpoint, tmp_path, "cpu-int4").bundle
    path = bundle.path
    (path / "onnx" / "decode.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"decode\.onnx reads"):
        BundleWeights(bundle).read("model.layers.0.mlp.up_proj.weight")
    (path / "onnx" / "decode.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(BundleError, match="cannot be read"):
        BundleWeights(bundle)


# The error of each layer


class Changed:
    """The checkpoint with one tensor replaced."""

    def __init__(self, checkpoint: Checkpoint, name: str, factor: float) -> None:
        self.checkpoint, self.name, self.factor = checkpoint, name, np.float32(factor)

    def read(self, name: str) -> NDArray[np.float32]:
        return self.checkpoint.read(name) * (self.factor if name == self.name else np.float32(1))


TEXTS = [list(range(1, 80)), list(range(200, 240))]


def test_equal_weights_have_no_error(checkpoint: Checkpoint) -> None:
    (rows,) = layer_errors(checkpoint, [checkpoint], TEXTS, silent)
    assert [row.layer for row in rows] == [-1, 0, 1, 2]
    assert all(row.residual == 0 and not row.local for row in rows)


def test_a_wrong_layer_is_found_where_it_is(checkpoint: Checkpoint) -> None:
    changed = Changed(checkpoint, "model.layers.1.mlp.up_proj.weight", -1)
    equal, rows = layer_errors(checkpoint, [checkpoint, changed], TEXTS, silent)
    assert all(row.residual == 0 for row in equal)
    assert [row.local or 0 for row in rows][:2] == [0, 0]
    assert rows[2].local is not None
    assert rows[2].local > 0.1
    assert rows[3].local == 0  # given the reference's input, the last layer is right
    assert rows[1].residual == 0
    assert min(rows[2].residual, rows[3].residual) > 0.01  # but what it is given is not


def test_the_error_is_relative_and_squared(checkpoint: Checkpoint) -> None:
    """Embeddings larger by a half: an error of 0.25 of the stream, whatever its size, the first position left out."""
    (rows,) = layer_errors(checkpoint, [Changed(checkpoint, "model.embed_tokens.weight", 1.5)], TEXTS, silent)
    assert rows[0].residual == pytest.approx(0.25, rel=1e-6)
    assert rows[0].local is None
    states = embed(checkpoint, TEXTS, 64)
    assert len(states) == 2
    np.testing.assert_array_equal(states[1], checkpoint.read("model.embed_tokens.weight")[200:240])
