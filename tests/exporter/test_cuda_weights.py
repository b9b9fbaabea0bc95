"""What CUDA recipes store: the checkpoint's numbers, rounded to the recipe's type, and its bytes where they fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tiny
from numpy.typing import NDArray

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.checkpoint import Checkpoint, expected_tensors
from helium_onnx.contract import WEIGHTS_FILE
from helium_onnx.errors import CheckpointError, ExportError, RecipeError
from helium_onnx.evaluation.bundle_weights import BundleWeights
from helium_onnx.exporter import read_tokenizer
from helium_onnx.exporter.calibration import load_calibration
from helium_onnx.exporter.key_value_scales import key_value_scales
from helium_onnx.modeling import rope_tables
from helium_onnx.recipe import MatrixSettings, Override, Precision, Recipe, load_recipe

TYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
STORED = {**TYPES, "float32": np.dtype(np.float32)}
RECIPE_OF = {"float16": "cuda-fp16", "bfloat16": "cuda-bf16"}


def stored(bundle: Bundle) -> dict[str, NDArray[Any]]:
    """All tensors of the weights file."""
    data = (bundle.path / WEIGHTS_FILE).read_bytes()
    return {
        record.name: np.frombuffer(data, STORED.get(record.dtype, np.uint8), offset=record.offset,
                                   count=int(np.prod(record.shape))).reshape(record.shape)
        for record in bundle.manifest.tensors
    }  # fmt: skip


def packed(read: dict[str, NDArray[Any]], layers: int) -> dict[str, NDArray[Any]]:
    """The checkpoint's tensors by the names and in the form of a bundle that quantizes nothing."""
    result = dict(read)
    for layer in range(layers):
        prefix = f"model.layers.{layer}.self_attn."
        parts = [result.pop(f"{prefix}{kind}_proj.weight") for kind in "qkv"]
        result[f"{prefix}qkv_proj.weight"] = np.concatenate(parts)
    return result


@pytest.mark.parametrize("compute", TYPES)
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("tie", [False, True])
def test_every_tensor_is_the_checkpoints_rounded(compute: str, dtype: str, tie: bool, tmp_path: Path) -> None:
    source = Checkpoint.open(tiny.write_checkpoint(tmp_path / "c", dtype=dtype, tie=tie, shards=2))
    bundle = helium_onnx.export(source.folder, tmp_path / "b", recipe=RECIPE_OF[compute])
    found, kind = stored(bundle), TYPES[compute]
    exact = {name: source.read(name) for name in expected_tensors(source.config)}
    exact |= dict(zip(("cos", "sin"), (table.numpy() for table in rope_tables(source.config)), strict=True))
    expected = packed(exact, source.config.num_hidden_layers)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == kind
        np.testing.assert_array_equal(found[name], values.astype(kind), strict=True)
    weights = BundleWeights(bundle)
    for name in expected_tensors(source.config):
        np.testing.assert_array_equal(weights.read(name), exact[name].astype(kind).astype(np.float32))


def test_the_bytes_of_a_bfloat16_checkpoint(tmp_path: Path) -> None:
    source = Checkpoint.open(tiny.write_checkpoint(tmp_path / "c"))
    bundle = helium_onnx.export(source.folder, tmp_path / "b", recipe="cuda-bf16")
    found = stored(bundle)
    raw = {}
    for name, info in source.tensors.items():
        with info.file.open("rb") as file:
            file.seek(info.offset)
            raw[name] = np.frombuffer(file.read(info.nbytes), np.uint16).reshape(info.shape)
    for name, bits in packed(raw, 3).items():
        np.testing.assert_array_equal(found[name].view(np.uint16), bits)


def test_packed_rows_follow_each_other_where_they_are_read_in_pieces(tmp_path: Path, monkeypatch: Any) -> None:
    source = Checkpoint.open(tiny.write_checkpoint(tmp_path / "c"))
    whole = helium_onnx.export(source.folder, tmp_path / "whole", recipe="cuda-fp16")
    in_full = Checkpoint.iter_rows
    monkeypatch.setattr(Checkpoint, "iter_rows", lambda self, name, **_: in_full(self, name, 5 * 4 * 64))
    pieces = helium_onnx.export(source.folder, tmp_path / "pieces", recipe="cuda-fp16")
    assert pieces.digest == whole.digest


def scaled(folder: Path, tensor: str, value: float) -> Path:
    """A checkpoint in float32 one of whose numbers is ``value``."""
    source = Checkpoint.open(tiny.write_checkpoint(folder, dtype="F32"))
    info = source.tensors[tensor]
    with info.file.open("r+b") as file:
        file.seek(info.offset + 4 * 7)
        file.write(np.float32(value).tobytes())
    return folder


@pytest.mark.parametrize("value", [65520.0, -65520.0, 1e30])
@pytest.mark.parametrize(
    "tensor", ["model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight", "model.norm.weight"]
)
def test_what_float16_cannot_hold(tensor: str, value: float, tmp_path: Path) -> None:
    folder = scaled(tmp_path / "c", tensor, value)
    with pytest.raises(ExportError) as caught:
        helium_onnx.export(folder, tmp_path / "b", recipe="cuda-fp16")
    error = caught.value
    assert "do not fit float16" in error.what
    assert tensor in str(error.found)
    assert "65504" in str(error.expected)
    assert "cuda-bf16" in str(error.remedy)
    assert not (tmp_path / "b").exists()
    found = stored(helium_onnx.export(folder, tmp_path / "brain", recipe="cuda-bf16"))
    assert np.isfinite(found[tensor.replace("k_proj", "qkv_proj")].astype(np.float32)).all()


def test_the_largest_that_float16_holds(tmp_path: Path) -> None:
    """What rounds to 65504 fits."""
    folder = scaled(tmp_path / "c", "model.norm.weight", np.nextafter(np.float32(65520), np.float32(0)))
    assert stored(helium_onnx.export(folder, tmp_path / "b", recipe="cuda-fp16"))["model.norm.weight"].max() == 65504


def quantized(compute: str, method: str = "round-to-nearest", **changes: object) -> Recipe:
    """cuda-int4 in another type, by another method."""
    recipe = load_recipe("cuda-int4")
    settings = {
        kind: dataclasses.replace(getattr(recipe.quantization, kind), scales=compute)
        for kind in ("linear", "head", "embedding")
    }
    return dataclasses.replace(
        recipe,
        precision=Precision(compute, compute),  # type: ignore[arg-type]
        quantization=dataclasses.replace(recipe.quantization, method=method, **{**settings, **changes}),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("compute", TYPES)
def test_an_int8_cache_adds_its_scales_and_nothing_else(compute: str, tmp_path: Path) -> None:
    """In float32, those of the calibration text; of another text they are others."""
    source = Checkpoint.open(tiny.write_checkpoint(tmp_path / "c", std=0.1))
    plain = stored(helium_onnx.export(source.folder, tmp_path / "plain", recipe=RECIPE_OF[compute]))
    recipe = dataclasses.replace(load_recipe(RECIPE_OF[compute]), name="kv8", precision=Precision(compute, "int8"))  # type: ignore[arg-type]
    lines = (f'{{"text": "the table {i} of an ant and an insert in the time of a table"}}\n' for i in range(200))
    (tmp_path / "own.jsonl").write_text("".join(lines))
    bundle = helium_onnx.export(source.folder, tmp_path / "b", recipe=recipe, calibration=tmp_path / "own.jsonl")
    shipped = helium_onnx.export(source.folder, tmp_path / "s", recipe=recipe)
    assert bundle.manifest.quantization["calibration"] != shipped.manifest.quantization["calibration"]
    tensors, others = stored(bundle), stored(shipped)
    scales = {name: tensors.pop(name) for name in list(tensors) if name.endswith("_cache.scales")}
    assert tensors.keys() == plain.keys()
    for name, values in plain.items():
        np.testing.assert_array_equal(tensors[name], values, strict=True)
    text = load_calibration(tmp_path / "own.jsonl", read_tokenizer(source), source.config, tokens=0)
    for layer, expected in enumerate(key_value_scales(source, text.windows)):
        for kind, wanted in (("key", expected.key), ("value", expected.value)):
            name = f"model.layers.{layer}.self_attn.{kind}_cache.scales"
            assert scales[name].dtype == np.float32 and scales[name].shape == (1, 2, 1, 16)
            np.testing.assert_array_equal(scales[name].reshape(2, 16), wanted)
            assert (scales[name] != others[name]).any()


@pytest.mark.parametrize("compute", TYPES)
@pytest.mark.parametrize("method", ["round-to-nearest", "hqq", "k-quant", "gptq"])
def test_scales_in_the_type_of_the_recipe(compute: str, method: str, tmp_path: Path) -> None:
    """Codes are chosen for the scales that are stored."""
    source = Checkpoint.open(tiny.write_checkpoint(tmp_path / "c", std=0.1))
    bundle = helium_onnx.export(source.folder, tmp_path / "b", recipe=quantized(compute, method))
    scales = {name: values for name, values in stored(bundle).items() if name.endswith(".scales")}
    assert len(scales) == 3 * 5 + 2
    assert {values.dtype for values in scales.values()} == {TYPES[compute]}
    assert all((values.astype(np.float32) != 0).all() for values in scales.values())
    weights = BundleWeights(bundle)
    for name in ("model.layers.2.mlp.gate_proj.weight", "model.embed_tokens.weight", "lm_head.weight"):
        exact = source.read(name)
        # 16 steps over some 4 standard deviations to either side leave a tenth of one.
        assert np.sqrt(np.mean((weights.read(name) - exact) ** 2)) < 0.15 * exact.std()


def test_scales_that_float16_cannot_hold(tmp_path: Path) -> None:
    folder = scaled(tmp_path / "c", "model.layers.1.self_attn.k_proj.weight", 1e30)
    with pytest.raises(CheckpointError, match=r"too large for scales in float16[\s\S]*cuda-bf16"):
        helium_onnx.export(folder, tmp_path / "b", recipe=quantized("float16"))
    helium_onnx.export(folder, tmp_path / "brain", recipe=quantized("bfloat16"))


def test_plain_matrices_between_quantized_ones(tmp_path: Path) -> None:
    overrides = (Override("model.layers.*.mlp.down_proj", bits=32), Override("model.layers.1.self_attn.*", bits=32))
    source = Checkpoint.open(tiny.write_checkpoint(tmp_path / "c"))
    bundle = helium_onnx.export(source.folder, tmp_path / "b", recipe=quantized("float16", overrides=overrides))
    found = stored(bundle)
    for name in ("model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.o_proj.weight"):
        np.testing.assert_array_equal(found[name], source.read(name).astype(np.float16))
    assert "model.layers.1.self_attn.qkv_proj.weight" in found
    assert "model.layers.0.self_attn.qkv_proj.weight.quantized" in found
    assert all(check.ok for check in helium_onnx.verify(bundle.path))


@pytest.mark.parametrize("head", [MatrixSettings(), MatrixSettings(4, 32, True, "float16")], ids=["plain", "4 bits"])
@pytest.mark.parametrize(
    "embedding", [MatrixSettings(), MatrixSettings(4, 32, True, "float16")], ids=["plain", "4 bits"]
)
def test_a_tied_head(head: MatrixSettings, embedding: MatrixSettings, tmp_path: Path) -> None:
    """Stored once where both are stored alike, and twice where they are not."""
    source = Checkpoint.open(tiny.write_checkpoint(tmp_path / "c", tie=True))
    bundle = helium_onnx.export(
        source.folder, tmp_path / "b", recipe=quantized("float16", head=head, embedding=embedding)
    )
    names = {name.removesuffix(".quantized") for name in stored(bundle)}
    assert ("lm_head.weight" in names) is (head != embedding)
    assert all(check.ok for check in helium_onnx.verify(bundle.path))


def test_an_override_that_meets_scales_of_another_type(tmp_path: Path) -> None:
    """cuda-fp16 with one matrix quantized, whose kind's table was left out: its scales are float32 there."""
    recipe = load_recipe("cuda-fp16")
    quantization = dataclasses.replace(
        recipe.quantization, method="round-to-nearest", accuracy_level=0, overrides=(Override("lm_head", bits=8),)
    )
    checkpoint = tiny.write_checkpoint(tmp_path / "c")
    with pytest.raises(RecipeError) as caught:
        helium_onnx.export(checkpoint, tmp_path / "b", recipe=dataclasses.replace(recipe, quantization=quantization))
    assert 'lm_head.weight.scales = "float32"' in str(caught.value.found)
    assert str(caught.value.remedy) == 'set scales = "float16"'


def test_a_budget_in_bits(tmp_path: Path) -> None:
    """Matrices of different bits in one layer; the whole is as small as was asked for."""
    source = tiny.write_checkpoint(tmp_path / "c", std=0.1)
    bundle = helium_onnx.export(source, tmp_path / "b", recipe=quantized("float16"), budget="5.5bits")
    kinds = {matrix["bits"] for matrix in bundle.manifest.quantization["allocation"]["matrices"]}
    assert kinds == {4, 8}
    assert bundle.manifest.quantization["allocation"]["bits_per_weight"] <= 5.5
    assert {v.dtype for name, v in stored(bundle).items() if name.endswith(".scales")} == {np.dtype(np.float16)}
    assert all(check.ok for check in helium_onnx.verify(bundle.path))


@pytest.mark.parametrize(
    ("embedding", "megabytes"), [(MatrixSettings(4, 64, False, "float16"), 6), (MatrixSettings(), 8)]
)
def test_a_budget_in_bytes_holds_for_all_files(
    embedding: MatrixSettings, megabytes: int, sample_checkpoint: Path, tmp_path: Path
) -> None:
    """What is not quantized counts as it is stored, two bytes a weight."""
    recipe = quantized("float16", embedding=embedding)
    bundle = helium_onnx.export(sample_checkpoint, tmp_path / "b", recipe=recipe, budget=f"{megabytes}MB")
    assert bundle.manifest.quantization["allocation"] is not None
    size = sum(path.stat().st_size for path in bundle.path.rglob("*") if path.is_file())
    assert 0.85 * megabytes * 1e6 < size <= megabytes * 1e6
