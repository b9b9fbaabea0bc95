"""The deep form of validate, end to end: what is right measures as right, and a flipped sign does not."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray

import helium_onnx
from helium_onnx.bundle import Bundle, BundleWriter
from helium_onnx.checkpoint import Checkpoint
from helium_onnx.contract import WEIGHTS_FILE
from helium_onnx.errors import CheckpointNotFoundError, ContextOverflowError, TextError, UsageError
from helium_onnx.evaluation.gates import Gates
from helium_onnx.evaluation.greedy import Continuation, continue_greedily, divergence, prompts
from helium_onnx.evaluation.measure import compare, validate_text
from helium_onnx.evaluation.reference import Head, stream
from helium_onnx.evaluation.report import FidelityReport, GreedySummary
from helium_onnx.loading import load_tokenizer
from helium_onnx.modeling import HeliumForCausalLM
from helium_onnx.progress import ProgressEvent, silent
from helium_onnx.texts import Window, read_texts, token_windows

VALID = Path(__file__).parents[2] / "benchmarks" / "data" / "valid.jsonl"
SMALL = {"limit": 6, "max_tokens": 160, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def exact(sample_bundle_fp32: Path, sample_checkpoint: Path) -> FidelityReport:
    return validate_text(sample_bundle_fp32, against=sample_checkpoint, text=VALID, **SMALL)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def int4(sample_bundle: Path, sample_checkpoint: Path) -> FidelityReport:
    return validate_text(sample_bundle, against=sample_checkpoint, text=VALID, **SMALL)  # type: ignore[arg-type]


def test_float32_is_the_reference(exact: FidelityReport) -> None:
    figures = exact.figures
    assert abs(figures.ln_ratio.value) <= 1e-5
    assert figures.kl.value <= 1e-7
    assert figures.same_top1.value == 1
    assert (figures.lost, figures.gained, figures.not_finite) == (0, 0, 0)
    assert 0 < figures.max_abs < 1e-3
    assert exact.greedy_summary == GreedySummary(
        len(exact.greedy), len(exact.greedy), exact.greedy_summary.mean_equal, None
    )
    assert all(row.residual == 0 for row in exact.layers)
    assert exact.warning is None
    assert exact.storage.bits_per_weight["all"] == 32
    assert exact.failures(Gates(1e-7, 1.0, 1.00001)) == ()


def test_perplexities_are_those_of_the_whole_model(int4: FidelityReport, sample_checkpoint: Path) -> None:
    """Both perplexities once more, without any code of the evaluation: torch for one, plain logits for the other."""
    checkpoint = Checkpoint.open(sample_checkpoint)
    model = HeliumForCausalLM.from_checkpoint(checkpoint)
    with helium_onnx.load(int4.bundle, cache=False) as ours:
        windows = token_windows(read_texts(VALID), ours.tokenizer, max_tokens=160, limit=6)
        losses: list[tuple[float, float]] = []
        for window in windows:
            ids = torch.tensor([window.ids])
            with torch.inference_mode():
                logits = model(ids, torch.ones_like(ids), model.empty_past())[0][0, :-1]
            # As many rows at once as the evaluation: with another number, kernels round activations otherwise (1e-4).
            theirs = ours.session.run("decode", np.array([window.ids[:-1]]), ours.session.new_past(1))[0]
            targets = torch.tensor(window.ids[1:])
            losses += zip(
                *(
                    torch.nn.functional.cross_entropy(x.double(), targets, reduction="none").tolist()
                    for x in (logits, torch.from_numpy(theirs))
                ),
                strict=True,
            )
    reference, found = np.exp(np.mean(losses, axis=0))
    assert int4.figures.positions == len(losses) == sum(len(window.ids) - 1 for window in windows)
    assert int4.figures.reference_perplexity == pytest.approx(reference, rel=1e-5)
    assert int4.figures.perplexity == pytest.approx(found, rel=1e-6)


def test_four_bits_cost_what_they_cost(int4: FidelityReport) -> None:
    figures = int4.figures
    assert 0.005 < figures.ln_ratio.value < 0.06
    assert 0.01 < figures.kl.value < 0.08
    assert figures.kl.value < figures.kl_percentiles[1] < figures.kl_percentiles[2] <= figures.kl_max
    assert 0.8 < figures.same_top1.value < 0.97
    assert 4.5 < int4.storage.bits_per_weight["all"] < 4.7  # 4 bits, scales in float16, some matrices of 8 bits
    assert sum(int4.histogram.counts) == figures.positions
    assert [row.layer for row in int4.layers] == [-1, 0, 1, 2, 3, 4, 5]
    assert all(1e-3 < row.residual < 0.1 for row in int4.layers)
    assert any(row.parts for row in int4.greedy)
    assert len(int4.max_abs_by_position) == 159
    assert max(int4.max_abs_by_position) == figures.max_abs
    assert int4.worst[0].kl == figures.kl_max
    assert [row.kl for row in int4.worst] == sorted((row.kl for row in int4.worst), reverse=True)


def test_languages_are_parts_of_the_whole(int4: FidelityReport) -> None:
    parts = int4.languages.values()
    assert set(int4.languages) == {"it", "fr", "es", "de"}
    for count in ("windows", "positions", "lost", "gained"):
        assert sum(getattr(part, count) for part in parts) == getattr(int4.figures, count)
    mean = sum(part.kl.value * part.positions for part in parts) / int4.figures.positions
    assert mean == pytest.approx(int4.figures.kl.value)


def test_to_dict_is_json(int4: FidelityReport) -> None:
    plain = json.loads(json.dumps(int4.to_dict(Gates(max_kl=1e-3)), allow_nan=False))
    assert plain["figures"]["kl"]["value"] == int4.figures.kl.value
    assert list(plain["figures"]["kl_percentiles"]) == ["p50", "p90", "p99", "p99.9"]
    assert plain["figures"]["perplexity_ratio"] == pytest.approx(
        int4.figures.perplexity / int4.figures.reference_perplexity
    )
    assert plain["gates"]["failed"][0]["gate"] == "max_kl"
    assert plain["greedy"]["texts"] == len(plain["greedy"]["rows"])
    assert len(plain["layers"]) == 7
    assert "gates" not in int4.to_dict()
    nan = dataclasses.replace(int4, figures=dataclasses.replace(int4.figures, kl_max=math.nan, perplexity=math.inf))
    broken = json.loads(json.dumps(nan.to_dict(), allow_nan=False))
    assert broken["figures"]["kl_max"] is None
    assert broken["figures"]["perplexity"] is None


def rewritten(bundle: Path, target: Path, name: str) -> Path:
    """The bundle with the signs of one stored float32 tensor flipped, under a manifest that vouches for it."""
    original = Bundle.open(bundle)
    record = next(record for record in original.manifest.tensors if record.name == name)
    with BundleWriter(target, force=False, expected_bytes=0) as writer:
        shutil.copytree(bundle, writer.folder, dirs_exist_ok=True)
        (writer.folder / "helium.json").unlink()
        file = np.memmap(writer.folder / WEIGHTS_FILE, np.uint8, "r+")
        values: NDArray[np.float32] = file[record.offset : record.offset + record.nbytes].view(np.float32)
        values *= -1
        file.flush()
        writer.commit(original.manifest)
    return target


def test_a_flipped_sign_fails_every_gate(sample_bundle_fp32: Path, sample_checkpoint: Path, tmp_path: Path) -> None:
    name = "model.layers.3.mlp.up_proj.weight.transposed"
    wrong = rewritten(sample_bundle_fp32, tmp_path / "wrong", name)
    report = helium_onnx.validate(
        wrong, against=sample_checkpoint, text=VALID, limit=2, max_tokens=128, max_new_tokens=4
    )
    assert [f.gate for f in report.failures(Gates(0.05, 0.9, 1.02))] == ["max_kl", "min_top1", "max_ppl_ratio"]
    local = [row.local or 0 for row in report.layers]
    assert local[4] == max(local) > 0.1  # layer 3
    assert [x for i, x in enumerate(local) if i != 4] == [0] * 6


def test_compare_measures_each_as_validate_does(
    sample_bundle_fp32: Path, sample_bundle: Path, sample_checkpoint: Path, int4: FidelityReport
) -> None:
    events: list[ProgressEvent] = []
    comparison = helium_onnx.compare(
        [sample_bundle_fp32, sample_bundle], against=sample_checkpoint, text=VALID, progress=events.append, **SMALL
    )
    assert [report.recipe for report in comparison.reports] == ["cpu-fp32", "cpu-int4"]
    second = comparison.reports[1]
    assert second.figures.kl.value == pytest.approx(int4.figures.kl.value, rel=1e-3)
    assert second.layers == int4.layers
    assert [row.equal for row in second.greedy] == [row.equal for row in int4.greedy]
    assert [failure.bundle for failure in comparison.failures(Gates(max_kl=1e-4))] == [str(sample_bundle)]
    json.dumps(comparison.to_dict(Gates(max_kl=1e-4)), allow_nan=False)
    assert {"reference", "greedy reference", "layers"} < {event.stage for event in events}
    assert all(0 <= event.done <= event.total for event in events)


def test_another_checkpoint_is_told(sample_bundle_fp32: Path, sample_checkpoint: Path, tmp_path: Path) -> None:
    other = shutil.copytree(sample_checkpoint, tmp_path / "other")
    tiny.edit_json(other / "config.json", model_type="llama")
    report = validate_text(sample_bundle_fp32, against=other, text=VALID, limit=2, max_tokens=100, max_new_tokens=4)
    assert report.warning is not None
    assert "config.json" in report.warning
    assert report.figures.kl.value > 0.1  # the other RoPE


def test_what_is_refused(sample_bundle: Path, sample_checkpoint: Path, tmp_path: Path) -> None:
    fine = {"against": sample_checkpoint, "text": VALID}
    with pytest.raises(UsageError, match="no bundle"):
        compare([], **fine)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="max_new_tokens"):
        validate_text(sample_bundle, max_new_tokens=0, **fine)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no window"):
        validate_text(sample_bundle, max_tokens=1, **fine)  # type: ignore[arg-type]
    with pytest.raises(ContextOverflowError, match="2048"):
        validate_text(sample_bundle, max_tokens=2049, **fine)  # type: ignore[arg-type]
    with pytest.raises(ContextOverflowError, match="2048"):
        validate_text(sample_bundle, max_new_tokens=2040, **fine)  # type: ignore[arg-type]
    with pytest.raises(CheckpointNotFoundError):
        validate_text(sample_bundle, against=tmp_path / "nothing", text=VALID)
    with pytest.raises(TextError, match="there is no file"):
        validate_text(sample_bundle, against=sample_checkpoint, text=tmp_path / "nothing")
    other = tiny.write_checkpoint(tmp_path / "other")
    with pytest.raises(UsageError, match="320"):
        validate_text(sample_bundle, against=other, text=VALID)
    stranger = helium_onnx.export(other, tmp_path / "stranger", recipe="cpu-fp32").path
    with pytest.raises(UsageError, match="not bundles of one model"):
        compare([sample_bundle, stranger], **fine)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="exclude"):
        helium_onnx.validate(sample_bundle, prompts=["a"], **fine)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="--against"):
        helium_onnx.validate(sample_bundle)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="golden"):
        helium_onnx.validate(sample_bundle, golden=True, **fine)  # type: ignore[call-overload]


# Greedy texts


def test_the_divergence_is_where_two_greedy_texts_part(sample_bundle: Path, sample_checkpoint: Path) -> None:
    """Against the reference's own greedy text, generated token by token."""
    checkpoint = Checkpoint.open(sample_checkpoint)
    model = HeliumForCausalLM.from_checkpoint(checkpoint)
    tokenizer = load_tokenizer(Bundle.open(sample_bundle))
    chosen = prompts(token_windows(read_texts(VALID), tokenizer, max_tokens=64, limit=8))
    with helium_onnx.load(sample_bundle, cache=False) as ours:
        texts = continue_greedily(ours.session, chosen, max_new_tokens=24, eos_token_ids=())
    hidden, head = stream(checkpoint, [text.ids for text in texts], silent), Head(checkpoint)
    rows = [divergence(text, hidden, index, head) for index, text in enumerate(texts)]
    for text, row in zip(texts, rows, strict=True):
        ids = list(text.prompt)
        for _ in text.tokens:
            batch = torch.tensor([ids])
            with torch.inference_mode():
                ids.append(int(model(batch, torch.ones_like(batch), model.empty_past())[0][0, -1].argmax()))
        theirs = ids[len(text.prompt) :]
        part = next((i for i, (a, b) in enumerate(zip(text.tokens, theirs, strict=True)) if a != b), None)
        assert (row.equal if row.parts else None) == part
        if part is not None:
            assert (row.token_id, row.reference_token_id) == (text.tokens[part], theirs[part])
            assert row.gap is not None
            assert row.gap > 0
    assert any(row.parts for row in rows)


def test_greedy_texts_end_at_eos(sample_bundle: Path) -> None:
    with helium_onnx.load(sample_bundle, cache=False) as model:
        window = Window(tuple(model.tokenizer.encode("To insert a table")))
        (free,) = continue_greedily(model.session, [window], max_new_tokens=8, eos_token_ids=())
        (ended,) = continue_greedily(model.session, [window], max_new_tokens=8, eos_token_ids=free.tokens[2:3])
        text = model.generate("To insert a table", max_new_tokens=8, ignore_eos=True)
    assert free.tokens == tuple(text[0].token_ids)
    assert len(free.tokens) == 8
    assert ended == Continuation(free.prompt, free.tokens[: free.tokens.index(free.tokens[2]) + 1], None, 0)


def test_prompts_are_some_of_each_language() -> None:
    windows = [Window((1, i), lang) for i, lang in enumerate(["a", "a", "a", None, "b", None, "a", None])]
    assert [window.ids[1] for window in prompts(windows)] == [0, 1, 3, 4, 5]
