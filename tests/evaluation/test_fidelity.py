"""The metrics against sums written out by hand, on random logits and on cases whose value is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from helium_onnx.evaluation import fidelity
from helium_onnx.evaluation.fidelity import PERCENTILES, Scores, estimate, max_abs_by_position, score, summarize

V = 23


def logits(rows: int, seed: int, scale: float = 3.0) -> NDArray[np.float32]:
    return (scale * np.random.default_rng(seed).standard_normal((rows, V))).astype(np.float32)


def by_hand(reference: Any, ours: Any, target: int) -> dict[str, float]:
    """One position, in Python's floats."""
    p, q = ([math.exp(x) for x in map(float, row)] for row in (reference, ours))
    p, q = [x / math.fsum(p) for x in p], [x / math.fsum(q) for x in q]
    return {
        "nll": -math.log(q[target]),
        "reference_nll": -math.log(p[target]),
        "kl": math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True)),
        "max_abs": max(abs(float(a) - float(b)) for a, b in zip(reference, ours, strict=True)),
        "top1": q.index(max(q)),
        "reference_top1": p.index(max(p)),
    }


def random_scores(rows: int, seed: int) -> tuple[Scores, list[dict[str, float]]]:
    reference = logits(rows, seed)
    ours = reference + logits(rows, seed + 100, 0.7)
    targets = np.random.default_rng(seed).integers(0, V, rows)
    expected = [by_hand(reference[i], ours[i], int(targets[i])) for i in range(rows)]
    return score(reference, ours, targets), expected


def test_every_position(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "_ROWS", 7)  # several chunks, the last not full
    found, expected = random_scores(40, 0)
    for name in expected[0]:
        np.testing.assert_allclose(getattr(found, name), [e[name] for e in expected], rtol=1e-12, err_msg=name)


def test_the_sums_of_several_windows() -> None:
    pairs = [random_scores(rows, seed) for seed, rows in enumerate((30, 11, 52))]
    flat = [e for _, expected in pairs for e in expected]
    targets = np.concatenate([window.target for window, _ in pairs])
    figures = summarize([window for window, _ in pairs])
    assert (figures.windows, figures.positions) == (3, 93)
    nll, reference_nll = (math.fsum(e[name] for e in flat) / 93 for name in ("nll", "reference_nll"))
    assert figures.perplexity == pytest.approx(math.exp(nll), rel=1e-12)
    assert figures.reference_perplexity == pytest.approx(math.exp(reference_nll), rel=1e-12)
    assert figures.ln_ratio.value == pytest.approx(nll - reference_nll, rel=1e-9)
    assert figures.ratio == pytest.approx(figures.perplexity / figures.reference_perplexity, rel=1e-9)
    assert figures.kl.value == pytest.approx(math.fsum(e["kl"] for e in flat) / 93, rel=1e-12)
    assert figures.kl_max == pytest.approx(max(e["kl"] for e in flat), rel=1e-12)
    ordered = sorted(e["kl"] for e in flat)
    for percentile, value in zip(PERCENTILES, figures.kl_percentiles, strict=True):
        place = percentile / 100 * 92
        low = math.floor(place)
        between = ordered[low] + (place - low) * (ordered[min(low + 1, 92)] - ordered[low])
        assert value == pytest.approx(between, rel=1e-9)
    same = sum(e["top1"] == e["reference_top1"] for e in flat)
    assert 0 < same < 93
    assert figures.same_top1.value == pytest.approx(same / 93)
    rights = [(e["reference_top1"] == t, e["top1"] == t) for e, t in zip(flat, targets, strict=True)]
    assert figures.lost == sum(reference and not ours for reference, ours in rights)
    assert figures.gained == sum(ours and not reference for reference, ours in rights)
    assert figures.max_abs == pytest.approx(max(e["max_abs"] for e in flat), rel=1e-12)
    assert figures.not_finite == 0


def test_flips_are_told_apart() -> None:
    a, b = np.eye(2, V, dtype=np.float32)[[0]], np.eye(2, V, dtype=np.float32)[[1]]
    lost, gained, neither = (score(x, y, np.array([0])) for x, y in ((a, b), (b, a), (a, a)))
    assert (summarize([lost]).lost, summarize([lost]).gained) == (1, 0)
    assert (summarize([gained]).lost, summarize([gained]).gained) == (0, 1)
    assert (summarize([neither]).lost, summarize([neither]).gained) == (0, 0)
    assert summarize([lost, gained, neither, neither]).same_top1.value == 0.5


def test_equal_logits_and_a_constant_shift() -> None:
    x = logits(20, 3)
    targets = np.arange(20) % V
    figures = summarize([score(x, x, targets)])
    assert (figures.kl.value, figures.kl_max, figures.ln_ratio.value, figures.max_abs) == (0, 0, 0, 0)
    shifted = summarize([score(x, x + np.float32(4), targets)])
    assert shifted.kl_max < 1e-10  # a shift changes no probability
    assert shifted.max_abs == pytest.approx(4, abs=1e-5)


def test_large_logits_do_not_overflow() -> None:
    x = np.array([[3e4, 0.0, -3e4]], np.float32)
    figures = summarize([score(x, x[:, ::-1].copy(), np.array([0]))])
    assert figures.kl.value == pytest.approx(6e4)
    assert figures.ln_ratio.value == pytest.approx(6e4)
    assert math.isinf(figures.perplexity)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["ours", "reference"])
def test_what_is_not_finite_shows(bad: float, side: str) -> None:
    good = logits(9, 5)
    spoiled = good.copy()
    spoiled[4, 2] = bad
    pair = (good, spoiled) if side == "ours" else (spoiled, good)
    figures = summarize([score(*pair, np.full(9, 2))])
    assert figures.not_finite == 1
    assert all(math.isnan(e.value) for e in (figures.same_top1, figures.kl, figures.ln_ratio))
    assert all(math.isnan(x) for x in (figures.perplexity, figures.reference_perplexity, figures.kl_max))


def test_standard_errors_are_those_of_windows() -> None:
    """By the jackknife, another estimator of the same error: within some percent for a hundred windows."""
    rng = np.random.default_rng(0)
    windows = [rng.normal(rng.normal(1, 0.5), 1, int(n)) for n in rng.integers(20, 90, 100)]
    found = estimate(windows)
    sums, counts = np.array([w.sum() for w in windows]), np.array([len(w) for w in windows])
    without = (sums.sum() - sums) / (counts.sum() - counts)
    jackknife = math.sqrt(99 / 100 * ((without - without.mean()) ** 2).sum())
    assert found.value == pytest.approx(sums.sum() / counts.sum())
    assert found.standard_error == pytest.approx(jackknife, rel=0.03)
    everything = np.concatenate(windows)
    assert found.standard_error > 2 * everything.std() / math.sqrt(len(everything))  # not that of single positions
    assert math.isnan(estimate(windows[:1]).standard_error)


def test_max_abs_by_position() -> None:
    windows = [random_scores(rows, seed)[0] for seed, rows in enumerate((5, 9))]
    found = max_abs_by_position(windows)
    assert len(found) == 9
    np.testing.assert_array_equal(found[:5], np.maximum(windows[0].max_abs, windows[1].max_abs[:5]))
    np.testing.assert_array_equal(found[5:], windows[1].max_abs[5:])
