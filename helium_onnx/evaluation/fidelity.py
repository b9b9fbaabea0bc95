"""How far a model's logits are from the reference's: measured position by position, then summed up.

Pure numpy. Divergences and losses are in nats, in float64 from float32 logits. A scored position predicts a token of
its window: a window of n tokens has n - 1 of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

#: Rows whose log-probabilities are in memory at once: 25 MB for a vocabulary of 48000.
_ROWS = 64
#: Parts of the positions whose KL divergence is at most the percentile.
PERCENTILES = (50.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True)
class Scores:
    """One entry a position, of one window or of several joined.

    ``nll``, ``reference_nll``: -log probability of the token that follows, float64. ``kl``: divergence of the model
    from the reference, sum p_ref (log p_ref - log p), float64. ``top1``, ``reference_top1``: likeliest token, int64,
    -1 where a logit is not finite. ``target``: the token that follows, int64. ``max_abs``: largest |logit - reference
    logit| over the vocabulary, float64.
    """

    nll: NDArray[np.float64]
    reference_nll: NDArray[np.float64]
    kl: NDArray[np.float64]
    top1: NDArray[np.int64]
    reference_top1: NDArray[np.int64]
    target: NDArray[np.int64]
    max_abs: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.kl)

    @classmethod
    def join(cls, parts: Sequence[Scores]) -> Scores:
        """All positions of ``parts``, in their order."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def score(reference: NDArray[np.float32], logits: NDArray[np.float32], targets: NDArray[np.int64]) -> Scores:
    """Compare logits ``[positions, vocab_size]`` of both models; ``targets [positions]`` are the tokens that follow."""
    assert reference.shape == logits.shape and len(targets) == len(logits)
    parts = [
        _score(reference[i : i + _ROWS], logits[i : i + _ROWS], targets[i : i + _ROWS])
        for i in range(0, len(targets), _ROWS)
    ]
    return Scores.join(parts)


def _score(reference: NDArray[np.float32], logits: NDArray[np.float32], targets: NDArray[np.int64]) -> Scores:
    row = np.arange(len(targets))
    top1, reference_top1 = _top1(logits), _top1(reference)
    known = (top1 >= 0) & (reference_top1 >= 0)
    with np.errstate(all="ignore"):  # a logit that is not finite
        p, q = log_softmax(reference), log_softmax(logits)
        # What rounding leaves of equal distributions may be below zero.
        kl = np.maximum((np.exp(p) * (p - q)).sum(-1), 0.0)
        max_abs = np.abs(logits.astype(np.float64) - reference).max(-1)
    return Scores(
        # One logit of -inf leaves every sum finite: such a position has no figure, so that no mean hides it.
        nll=np.where(known, -q[row, targets], np.nan),
        reference_nll=np.where(known, -p[row, targets], np.nan),
        kl=np.where(known, kl, np.nan),
        top1=top1,
        reference_top1=reference_top1,
        target=targets.astype(np.int64),
        max_abs=max_abs,
    )


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-probabilities over the last axis, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(-1, keepdims=True))
    return wide


def _top1(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    finite = np.isfinite(logits).all(-1)
    return np.where(finite, logits.argmax(-1), -1).astype(np.int64)


@dataclass(frozen=True)
class Estimate:
    """A mean over positions, and its standard error, reckoned from how much windows differ (NaN for one window)."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class Figures:
    """The sums of some windows.

    ``ln_ratio`` is ln(perplexity / reference perplexity). ``kl_percentiles`` are in the order of ``PERCENTILES``.
    ``same_top1`` is a rate from 0 to 1. ``lost`` counts positions where the reference's likeliest token is the true
    one and the model's is not, ``gained`` the reverse. ``max_abs`` is max |logit - reference logit|. ``not_finite``
    counts positions where either's logits are not all finite.
    """

    windows: int
    positions: int
    reference_perplexity: float
    perplexity: float
    ln_ratio: Estimate
    kl: Estimate
    kl_percentiles: tuple[float, ...]
    kl_max: float
    same_top1: Estimate
    lost: int
    gained: int
    max_abs: float
    not_finite: int

    @property
    def ratio(self) -> float:
        """Perplexity over the reference's."""
        return _exp(self.ln_ratio.value)


def summarize(windows: Sequence[Scores]) -> Figures:
    """The figures of ``windows`` (at least one), each with its scores; every position counts the same."""
    joined = Scores.join(windows)
    right, reference_right = joined.top1 == joined.target, joined.reference_top1 == joined.target
    same = [_same(window) for window in windows]
    bad = (joined.top1 < 0) | (joined.reference_top1 < 0)
    with np.errstate(invalid="ignore"):
        percentiles = np.percentile(joined.kl, PERCENTILES)
    return Figures(
        windows=len(windows),
        positions=len(joined),
        reference_perplexity=_exp(float(joined.reference_nll.mean())),
        perplexity=_exp(float(joined.nll.mean())),
        ln_ratio=estimate([window.nll - window.reference_nll for window in windows]),
        kl=estimate([window.kl for window in windows]),
        kl_percentiles=tuple(float(value) for value in percentiles),
        kl_max=float(joined.kl.max()),
        same_top1=estimate(same),
        lost=int((reference_right & ~right).sum()),
        gained=int((right & ~reference_right).sum()),
        max_abs=float(joined.max_abs.max()),
        not_finite=int(bad.sum()),
    )


def _same(window: Scores) -> NDArray[np.float64]:
    """1 where both have one likeliest token; NaN where it cannot be told, so that no gate passes."""
    known = (window.top1 >= 0) & (window.reference_top1 >= 0)
    return np.where(known, (window.top1 == window.reference_top1).astype(np.float64), np.nan)


def estimate(windows: Sequence[NDArray[np.float64]]) -> Estimate:
    """Mean over all positions of ``windows``.

    The standard error is that of a ratio of sums over windows drawn independently (Cochran, Sampling Techniques, 1977,
    section 6.4): positions of one text depend on each other, so counting them one by one would promise too much.
    """
    sums = np.array([window.sum() for window in windows])
    counts = np.array([len(window) for window in windows], np.float64)
    mean = sums.sum() / counts.sum()
    count = len(windows)
    if count < 2:
        return Estimate(float(mean), float("nan"))
    residuals = sums - mean * counts
    error = np.sqrt(count / (count - 1) * (residuals**2).sum()) / counts.sum()
    return Estimate(float(mean), float(error))


def max_abs_by_position(windows: Sequence[Scores]) -> NDArray[np.float64]:
    """max |logit - reference logit| over windows, for each position in the window, the first being <s>'s."""
    longest = max(len(window) for window in windows)
    largest = np.zeros(longest)
    for window in windows:
        largest[: len(window)] = np.maximum(largest[: len(window)], window.max_abs)  # NaN stays
    return largest


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(value))
