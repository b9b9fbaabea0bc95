"""Exports whose matrices are chosen with a text or within a budget, and every text and budget that is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from typer.testing import CliRunner

import helium_onnx
from helium_onnx.cli import app
from helium_onnx.errors import RecipeError, TextError, UsageError
from helium_onnx.recipe import MatrixSettings, Override, Quantization, Recipe, load_recipe

FOUR = MatrixSettings(4, 32, False)
PAGES = ["a table in the time of an era, once upon a time and so on. " * 12, "la table de la gare est en or. " * 20]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint", std=0.1)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "pages.jsonl"
    path.write_text("".join(json.dumps({"text": page}) + "\n" for page in PAGES), encoding="utf-8")
    return path


def recipe(method: str = "gptq", **changes: object) -> Recipe:
    quantization = Quantization(method, linear=FOUR, head=FOUR, embedding=FOUR)  # type: ignore[arg-type]
    return Recipe("mine", "for a test", quantization=dataclasses.replace(quantization, **changes))  # type: ignore[arg-type]


def settings(bundle: helium_onnx.Bundle) -> dict[str, tuple[int, int]]:
    """Bits and block size of each MatMulNBits, by the name of its weights."""
    model = onnx.load(bundle.graph_path("decode"), load_external_data=False)
    found = {}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            attributes = {a.name: a.i for a in node.attribute}
            found[node.input[1].removesuffix(".weight.quantized")] = attributes["bits"], attributes["block_size"]
    return found


@pytest.mark.parametrize("method", ["round-to-nearest", "hqq", "k-quant", "gptq"])
def test_every_method_makes_a_bundle_that_passes_verify(method: str, checkpoint: Path, tmp_path: Path) -> None:
    bundle = helium_onnx.export(checkpoint, tmp_path / "out", recipe=recipe(method))
    assert all(check.ok for check in helium_onnx.verify(bundle.path))
    record = bundle.manifest.quantization
    assert record["method"] == method
    assert (record["calibration"] is not None) == (method == "gptq")


def test_calibration_text_is_used_and_recorded(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    bundles = {
        (method, given): helium_onnx.export(
            checkpoint, tmp_path / f"{method}-{given is None}", recipe=recipe(method), calibration=given
        )
        for method in ("k-quant", "gptq")
        for given in (None, text)
    }
    assert bundles["gptq", text].manifest.quantization["calibration"]["file"] == "pages.jsonl"
    assert bundles["gptq", None].manifest.quantization["calibration"]["file"] == "calibration.jsonl"
    assert bundles["k-quant", None].manifest.quantization["calibration"] is None
    weights = {key: (bundle.path / "onnx/model.onnx_data").read_bytes() for key, bundle in bundles.items()}
    assert len(set(weights.values())) == 4  # another text, other codes
    again = helium_onnx.export(checkpoint, tmp_path / "again", recipe=recipe("gptq"), calibration=text)
    assert (again.path / "onnx/model.onnx_data").read_bytes() == weights["gptq", text]


def test_overrides_reach_the_graph(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    overrides = (
        Override("model.layers.1.self_attn.v_proj", bits=8, block_size=16, symmetric=True),
        Override("model.layers.*.mlp.down_proj", bits=32),
        Override("lm_head", bits=8),
    )
    bundle = helium_onnx.export(checkpoint, tmp_path / "out", recipe=recipe(overrides=overrides), calibration=text)
    found = settings(bundle)
    assert found["model.layers.0.self_attn.qkv_proj"] == (4, 32)
    assert found["model.layers.1.self_attn.q_proj"] == (4, 32)  # not stored alike, so not packed
    assert found["model.layers.1.self_attn.v_proj"] == (8, 16)
    assert found["lm_head"] == (8, 32)
    assert not any("down_proj" in name for name in found)
    assert all(check.ok for check in helium_onnx.verify(bundle.path))


@pytest.mark.parametrize("tie", [False, True])
def test_a_budget_is_kept_and_its_table_recorded(tie: bool, text: Path, tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "checkpoint", std=0.1, tie=tie)
    sizes = []
    for bits in ("5.5bits", "7bits"):
        bundle = helium_onnx.export(folder, tmp_path / bits, recipe=recipe(), calibration=text, budget=bits)
        allocation = bundle.manifest.quantization["allocation"]
        assert allocation["bits_per_weight"] <= float(bits.removesuffix("bits"))
        stored = settings(bundle)
        for matrix in allocation["matrices"]:
            name = matrix["name"].removesuffix(".weight")
            if name in stored:
                assert stored[name] == (matrix["bits"], matrix["block_size"])
        by_name = {r.name: r.nbytes for r in bundle.manifest.tensors}
        head = sum(by_name.get(f"lm_head.weight.{kind}", 0) for kind in ("quantized", "scales", "zero_points"))
        assert head in (0, next(m["nbytes"] for m in allocation["matrices"] if m["name"] == "lm_head.weight"))
        sizes.append(sum(matrix["nbytes"] for matrix in allocation["matrices"]))
        assert all(check.ok for check in helium_onnx.verify(bundle.path))
    assert sizes[0] < sizes[1]


def test_a_budget_of_bytes_holds_for_all_files(sample_checkpoint: Path, tmp_path: Path) -> None:
    chosen = dataclasses.replace(
        load_recipe("cpu-int4"),
        quantization=dataclasses.replace(load_recipe("cpu-int4").quantization, method="round-to-nearest"),
    )
    bundle = helium_onnx.export(sample_checkpoint, tmp_path / "out", recipe=chosen, budget="6.5MB")
    on_disk = sum(file.stat().st_size for file in bundle.path.rglob("*") if file.is_file())
    # A page for each tensor is set aside, of which half is not needed: 0.7 MB here, 3 MB in a 2 B model.
    assert 0.88 * 6.5e6 < on_disk <= 6.5e6


BAD_TEXT = {
    "empty": ("", "is empty"),
    "too short": ('{"text": "a table in the time of an era and so on and on"}\n', "too short|long enough"),
    "not JSON Lines": ("a table\n", "is not JSON"),
    "another key": ('{"content": "a table"}\n', 'has no "text"'),
    "another script": (json.dumps({"text": "日本語の文章です。" * 200}) + "\n", "script"),
}


@pytest.mark.parametrize("case", BAD_TEXT)
def test_text_that_nothing_can_be_calibrated_with(case: str, checkpoint: Path, tmp_path: Path) -> None:
    content, what = BAD_TEXT[case]
    path = tmp_path / "text.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(TextError, match=what):
        helium_onnx.export(checkpoint, tmp_path / "out", recipe=recipe(), calibration=path)
    assert not (tmp_path / "out").exists()


def test_text_and_budgets_that_a_recipe_has_no_use_for(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="no use for calibration"):
        helium_onnx.export(checkpoint, out, recipe=recipe("round-to-nearest"), calibration=text)
    with pytest.raises(UsageError, match="quantizes nothing"):
        helium_onnx.export(checkpoint, out, recipe="cpu-fp32", budget="1GB")
    with pytest.raises(UsageError, match="exclude each other"):
        helium_onnx.export(checkpoint, out, recipe=recipe(), budget="1GB", max_kl=0.1)
    with pytest.raises(UsageError, match="below the minimum"):
        helium_onnx.export(checkpoint, out, recipe=recipe(), calibration=text, budget="10kB")
    with pytest.raises(RecipeError, match="matches no matrix"):
        helium_onnx.export(checkpoint, out, recipe=recipe(overrides=(Override("model.layers.9.*", bits=8),)))
    assert not out.exists()


def test_matrices_of_zeros_and_of_one_outlier(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "checkpoint", dtype="F32", std=0.1)
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][:] = 0
    tensors["model.layers.1.self_attn.o_proj.weight"][:] = 0
    tensors["model.layers.1.self_attn.o_proj.weight"][3, 5] = 1e4
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for method in ("round-to-nearest", "hqq", "k-quant", "gptq"):
        bundle = helium_onnx.export(folder, tmp_path / method, recipe=recipe(method))
        assert all(check.ok for check in helium_onnx.verify(bundle.path))


def test_the_command_prints_the_table_of_a_budget(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    arguments = ["export", str(checkpoint), str(tmp_path / "out"), "--calibration", str(text), "--max-kl", "10"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for part in ("layer", "down", "embed", "head", "bits a weight", "max_kl 10"):
        assert part in result.stdout
    refused = CliRunner().invoke(app, [*arguments[:2], str(tmp_path / "no"), "--budget", "lots"])
    assert refused.exit_code == 2
    assert "1.2GB" in refused.stderr


def test_memory_is_that_of_a_layer_and_not_of_the_model(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read at once is never more than a layer's matrices that share an input."""
    from helium_onnx.checkpoint import Checkpoint

    folder = tiny.write_checkpoint(tmp_path / "checkpoint", std=0.1, num_hidden_layers=6)
    alive: list[np.ndarray] = []
    read = Checkpoint.read

    def watched(self: Checkpoint, name: str) -> np.ndarray:
        import sys

        array = read(self, name)
        alive[:] = [a for a in alive if sys.getrefcount(a) > 3]
        alive.append(array)
        largest.append(sum(a.nbytes for a in alive))
        return array

    largest: list[int] = []
    monkeypatch.setattr(Checkpoint, "read", watched)
    helium_onnx.export(folder, tmp_path / "out", recipe=recipe(), calibration=text)
    layer = 4 * (3 * 64 * 96 + 2 * 64 * 64 + 2 * 32 * 64)
    assert 0 < max(largest) <= 1.5 * layer
