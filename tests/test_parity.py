"""validate: the sample passes, a wrong bundle does not, and the report says which prompt and which graph."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import shutil
from pathlib import Path

import pytest
import reference
import tiny
import torch
import transformers
from rich.console import Console

import helium_onnx
from helium_onnx.errors import CheckpointNotFoundError, ContextOverflowError, UsageError
from helium_onnx.evaluation.parity import PROMPTS, TOLERANCE, Difference, Divergence, ParityReport, ParityRow, validate

TEXTS = ["Once upon a time", "la table"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("parity") / "checkpoint")


def export(checkpoint: Path, recipe: str) -> Path:
    out = checkpoint.parent / recipe
    return out if out.exists() else helium_onnx.export(checkpoint, out, recipe=recipe).path


def test_the_sample_passes(sample_bundle_fp32: Path, sample_checkpoint: Path) -> None:
    report = helium_onnx.validate(sample_bundle_fp32, against=sample_checkpoint, max_new_tokens=24)
    assert report.passed
    assert report.warning is None
    assert report.tolerance == TOLERANCE
    assert [row.prompt for row in report.rows] == list(PROMPTS)
    assert max(row.worst for row in report.rows) < 1e-5
    assert all(row.divergence is None for row in report.rows)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_of_200_tokens_equals_that_of_transformers(
    prompt: str, sample_bundle_fp32: Path, generated: dict[str, tuple[list[int], str]]
) -> None:
    """By the public way on either side: helium_onnx.load().generate, and transformers' generate with its tokenizer."""
    with helium_onnx.load(sample_bundle_fp32) as model:
        (ours,) = model.generate(prompt, max_new_tokens=200).generations
    ids, text = generated[prompt]
    assert list(ours.token_ids) == ids
    assert prompt + ours.text == text


@pytest.fixture(scope="module")
def generated(sample_checkpoint: Path) -> dict[str, tuple[list[int], str]]:
    """Each prompt's new ids and the whole text, as transformers alone gives them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(sample_checkpoint)
    model = transformers.AutoModelForCausalLM.from_pretrained(sample_checkpoint, dtype=torch.float32)
    result = {}
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=200, do_sample=False)
        text = tokenizer.decode(out[0], skip_special_tokens=True)
        result[prompt] = (out[0, ids.shape[1] :].tolist(), text)
    return result


@pytest.mark.parametrize("recipe", ["cpu-fp32", "portable-fp32"])
def test_a_tiny_model_passes(recipe: str, checkpoint: Path) -> None:
    report = validate(export(checkpoint, recipe), against=checkpoint, prompts=TEXTS, max_new_tokens=8)
    assert report.passed
    for row in report.rows:
        assert row.prefill.positions == 1
        assert row.model.positions == row.prompt_tokens
        assert row.decode.positions == row.prompt_tokens + row.greedy_tokens - 1


def test_the_other_rope_fails(checkpoint: Path, tmp_path: Path) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    tiny.edit_json(other / "config.json", model_type="llama", architectures=["LlamaForCausalLM"])
    text = " ".join(TEXTS * 12)
    report = validate(export(other, "cpu-fp32"), against=checkpoint, prompts=[text], max_new_tokens=8)
    assert not report.passed
    assert report.rows[0].prompt_tokens >= 64
    assert report.rows[0].model.relative > reference.MUTATION
    assert report.warning is not None
    assert "config.json" in report.warning
    assert "model.safetensors" not in report.warning


def test_a_quantized_recipe_is_reported_not_judged(checkpoint: Path) -> None:
    report = validate(export(checkpoint, "cpu-int4"), against=checkpoint, prompts=TEXTS, max_new_tokens=8)
    assert report.passed
    assert report.tolerance is None
    assert report.rows[0].worst > TOLERANCE


def test_what_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    bundle = export(checkpoint, "cpu-fp32")
    with pytest.raises(UsageError, match="no prompt"):
        validate(bundle, against=checkpoint, prompts=[])
    for wrong in (0, -1, True, 2.0):
        with pytest.raises(UsageError, match="max_new_tokens"):
            validate(bundle, against=checkpoint, max_new_tokens=wrong)  # type: ignore[arg-type]
    with pytest.raises(ContextOverflowError, match="256"):
        validate(bundle, against=checkpoint, prompts=TEXTS, max_new_tokens=255)
    with pytest.raises(CheckpointNotFoundError):
        validate(bundle, against=tmp_path / "nothing", prompts=TEXTS)
    other = tiny.write_checkpoint(tmp_path / "other", vocab_size=330)
    with pytest.raises(UsageError, match="330"):
        validate(bundle, against=other, prompts=TEXTS)


GOOD = Difference(positions=4, max_abs=1e-5, scale=10.0)


def report_of(row: ParityRow, tolerance: float | None = TOLERANCE) -> ParityReport:
    return ParityReport("b", "cpu-fp32", "c", tolerance, None, {"torch": "2"}, (row,))


ROW = ParityRow("a [b] c", 4, GOOD, GOOD, GOOD, 8, None)


def test_verdicts() -> None:
    bad = Difference(4, 1.1e-3, 10.0)
    nan = Difference(4, math.nan, 10.0)
    real, tie = (Divergence(3, 5, 6, gap, is_tie) for gap, is_tie in ((1.0, False), (1e-6, True)))
    assert report_of(ROW).passed
    assert report_of(dataclasses.replace(ROW, divergence=tie)).passed
    assert not report_of(dataclasses.replace(ROW, divergence=real)).passed
    for name in ("model", "prefill", "decode"):
        assert not report_of(dataclasses.replace(ROW, **{name: bad})).passed  # type: ignore[arg-type]
        assert not report_of(dataclasses.replace(ROW, **{name: nan})).passed  # type: ignore[arg-type]
        assert report_of(dataclasses.replace(ROW, **{name: bad}), None).passed  # type: ignore[arg-type]
        assert not report_of(dataclasses.replace(ROW, **{name: nan}), None).passed  # type: ignore[arg-type]
    assert report_of(dataclasses.replace(ROW, divergence=real), None).passed


def test_to_dict_is_json() -> None:
    row = dataclasses.replace(ROW, model=Difference(4, math.nan, 1.0), divergence=Divergence(3, 5, 6, math.inf, False))
    plain = json.loads(json.dumps(report_of(row).to_dict(), allow_nan=False))
    assert plain["passed"] is False
    assert plain["rows"][0]["model"] == {"positions": 4, "max_abs": None, "scale": 1.0, "relative": None}
    assert plain["rows"][0]["divergence"]["gap"] is None
    assert plain["rows"][0]["prefill"]["relative"] == pytest.approx(1e-6)


@pytest.mark.parametrize("width", [60, 140])
def test_render(width: int) -> None:
    stream = io.StringIO()
    row = dataclasses.replace(ROW, divergence=Divergence(3, 5, 6, 1.0, False))
    report = dataclasses.replace(report_of(row), warning="files that differ: config.json")
    report.render(Console(file=stream, width=width))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "FAILED" in text
    assert "files that differ" in text
    if width == 140:
        assert "a [b] c" in text
        assert "3 of 8 equal" in text
        assert "1.0e-06" in text


def test_render_of_quantized_weights_names_no_bar() -> None:
    stream = io.StringIO()
    report_of(ROW, tolerance=None).render(Console(file=stream, width=140))
    assert "passed (logits are finite" in stream.getvalue()
    assert "bar for this recipe" not in stream.getvalue()
