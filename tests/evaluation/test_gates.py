"""Gates: which figures pass which bars, and bars that are refused."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from helium_onnx.errors import UsageError
from helium_onnx.evaluation.fidelity import Estimate, Figures, score, summarize
from helium_onnx.evaluation.gates import Gates, failures, parse_rate


@pytest.fixture
def figures() -> Figures:
    """Mean KL 0.02, same top-1 0.9, ratio of perplexities e^0.01 = 1.01005."""
    x = np.eye(2, 5, dtype=np.float32)
    plain = summarize([score(x, x, np.array([0, 1]))])
    return dataclasses.replace(
        plain, kl=Estimate(0.02, 0.001), same_top1=Estimate(0.9, 0.01), ln_ratio=Estimate(0.01, 0.001)
    )


@pytest.mark.parametrize(
    ("gates", "failed"),
    [
        (Gates(), []),
        (Gates(0.02, 0.9, 1.0101), []),
        (Gates(max_kl=0.0199), ["max_kl"]),
        (Gates(min_top1=0.901), ["min_top1"]),
        (Gates(max_ppl_ratio=1.01), ["max_ppl_ratio"]),
        (Gates(0.0, 1.0, 1.0), ["max_kl", "min_top1", "max_ppl_ratio"]),
    ],
)
def test_which_fail(gates: Gates, failed: list[str], figures: Figures) -> None:
    assert [failure.gate for failure in failures("out", figures, gates)] == failed


def test_a_failure_says_what_was_found_and_expected(figures: Figures) -> None:
    kl, top1, ratio = map(str, failures("out", figures, Gates(0.01, 0.95, 1.005)))
    assert kl == "out: the mean KL divergence is 0.02, not at most 0.01 (--max-kl)"
    assert top1 == "out: the rate of equal top tokens is 0.9, not at least 0.95 (--min-top1)"
    assert ratio == "out: the ratio of perplexities is 1.01005, not at most 1.005 (--max-ppl-ratio)"


def test_nan_passes_no_gate(figures: Figures) -> None:
    nan = Estimate(math.nan, math.nan)
    broken = dataclasses.replace(figures, kl=nan, same_top1=nan, ln_ratio=nan)
    assert len(failures("out", broken, Gates(1e9, 0.0, 1e9))) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_kl": -0.1}, {"max_kl": math.nan}, {"max_kl": math.inf}, {"min_top1": 1.01}, {"min_top1": -0.1},
        {"min_top1": 93.5}, {"min_top1": math.nan}, {"max_ppl_ratio": 0.0}, {"max_ppl_ratio": math.inf},
    ],
)  # fmt: skip
def test_bars_that_mean_nothing(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="out of range"):
        Gates(**wrong)


def test_rates() -> None:
    assert parse_rate("0.935") == 0.935
    assert parse_rate("93.5%") == pytest.approx(0.935)
    assert parse_rate(" 100 % ") == 1
    assert parse_rate("1") == 1
    assert parse_rate(".5") == 0.5
    for wrong in ("", "93.5", "101%", "-1%", "abc", "0,9", "nan", "1e-1", "%", "٠.٩", "0.9.1"):
        with pytest.raises(UsageError, match="no rate"):
            parse_rate(wrong)
    with pytest.raises(UsageError, match=r"write 93\.5% for a percentage"):
        parse_rate("93.5")
