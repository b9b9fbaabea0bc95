"""Published values of the preview: how they are judged, and which bundles they are not for."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.config import PREVIEW_2B
from helium_onnx.errors import UsageError
from helium_onnx.evaluation import golden
from helium_onnx.evaluation.golden import GREEDY_IDS, PROMPT_IDS, TOLERANCE, TOP_IDS, TOP_LOGITS, GoldenReport


class Published:
    """A session that answers as the published model does, ``error`` beside it, and ``wrong_at`` one token."""

    vocab_size, context_length = 48000, 64

    def __init__(self, error: float = 0.0, wrong_at: int = -1) -> None:
        self.error, self.wrong_at = error, wrong_at
        self.fed: list[int] = []

    def new_past(self, rows: int) -> Any:
        assert rows == 1
        return "a past"

    def run(self, phase: str, ids: NDArray[np.int64], past: object) -> NDArray[np.float32]:
        assert past == "a past"
        assert (phase == "prefill") == (not self.fed)
        self.fed += ids[0].tolist()
        logits = np.full((1, 1, self.vocab_size), -50, np.float32)
        logits[0, 0, list(TOP_IDS)] = np.array(TOP_LOGITS) + self.error
        step = len(self.fed) - len(PROMPT_IDS)
        if step:
            logits[0, 0, GREEDY_IDS[step]] = 99
        if step == self.wrong_at:
            logits[0, 0, 7] = 100
        return logits


def report(session: Published, tolerance: float | None = TOLERANCE) -> GoldenReport:
    rows, greedy = golden.continue_prompt(session)  # type: ignore[arg-type]
    return GoldenReport("out", "cpu-fp32", tolerance, rows, greedy)


def test_the_published_values_pass() -> None:
    session = Published()
    found = report(session)
    assert found.passed
    assert found.max_abs < 1e-6
    assert found.greedy_ids == GREEDY_IDS
    assert session.fed == [*PROMPT_IDS, *GREEDY_IDS[:-1]]


def test_what_fails() -> None:
    assert report(Published(error=0.9 * TOLERANCE)).passed
    for wrong in (
        Published(error=1.1 * TOLERANCE),
        Published(wrong_at=0),
        Published(wrong_at=13),
        Published(error=math.nan),
    ):
        found = report(wrong)
        assert not found.passed
        json.dumps(found.to_dict(), allow_nan=False)
    assert report(Published(wrong_at=13)).equal_tokens == 13


def test_quantized_weights_are_reported_not_judged() -> None:
    assert report(Published(error=1.0, wrong_at=3), tolerance=None).passed
    assert not report(Published(error=math.nan), tolerance=None).passed


@pytest.mark.parametrize("width", [60, 120])
def test_render(width: int) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=width)
    dataclasses.replace(report(Published(wrong_at=13)), bundle="a [b] c").render(console)
    assert max(map(len, stream.getvalue().splitlines())) <= width
    assert "13 of 20" in stream.getvalue()
    assert "FAILED" in stream.getvalue()
    assert "a [b] c" in stream.getvalue()


def test_another_model_is_refused(sample_bundle: Path) -> None:
    with pytest.raises(UsageError, match="no bundle of kyutai/helium-1-preview-2b") as caught:
        helium_onnx.validate(sample_bundle, golden=True)
    assert "vocab_size 6000" in str(caught.value)
    assert "vocab_size 48000" in str(caught.value)


@pytest.mark.parametrize("field", sorted(PREVIEW_2B))
def test_every_size_is_held_against_the_published_one(field: str, sample_bundle: Path) -> None:
    bundle = Bundle.open(sample_bundle)
    published = {**bundle.model_config, **PREVIEW_2B, "rope_parameters": None}
    other = {
        "model_type": "llama", "vocab_size": 48001, "hidden_size": 2688, "intermediate_size": 7041,
        "num_attention_heads": 10, "num_hidden_layers": 23, "num_key_value_heads": 10,
        "head_dim": 64, "rope_theta": 20000.0,
    }  # fmt: skip

    def with_config(config: dict[str, Any]) -> Bundle:
        return Bundle(bundle.path, dataclasses.replace(bundle.manifest, model_config=config))

    golden.check_config(with_config(published))
    changed = {**published, field: other[field]}
    # Heads and their size must still divide the hidden size, or it would be no config at all.
    changed |= {
        "hidden_size": {"num_attention_heads": 1280, "head_dim": 1280}.get(field, changed["hidden_size"]),
        "num_key_value_heads": 10 if field == "num_attention_heads" else changed["num_key_value_heads"],
    }
    if field == "hidden_size":
        changed |= {"num_attention_heads": 21, "num_key_value_heads": 21}
    with pytest.raises(UsageError, match=field):
        golden.check_config(with_config(changed))


@pytest.mark.slow
@pytest.mark.skipif("HELIUM_CHECKPOINT" not in os.environ, reason="HELIUM_CHECKPOINT is not set")
@pytest.mark.parametrize("recipe", ["cpu-fp32", "cpu-int4"])
def test_the_published_checkpoint(recipe: str, tmp_path: Path) -> None:
    out = helium_onnx.export(Path(os.environ["HELIUM_CHECKPOINT"]), tmp_path / "out", recipe=recipe).path
    found = helium_onnx.validate(out, golden=True)
    assert found.passed
    assert (found.tolerance is None) == (recipe == "cpu-int4")
