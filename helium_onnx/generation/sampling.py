"""From logits to a token: filters in the order of ``transformers``, then one portable draw.

The arithmetic is float64 and written so that a C or a JavaScript runtime can repeat it from the same seed:

- ``SplitMix64`` (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014) makes 64 bits a step; the
  upper 53 times 2^-53 are a uniform in [0, 1). A sampled token takes one step, a greedy one none.
- Row ``r`` of a batch starts at ``(seed + mix(r)) mod 2^64``, ``mix`` being SplitMix64's finalizer. ``mix(0)`` is 0, so
  row 0 is the stream of a single prompt.
- Weights are ``exp((logit - max) / temperature)``; their total is summed one by one in the order of ids. The token is
  the first, by (weight descending, id ascending), at which the running sum exceeds ``uniform * total``.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from helium_onnx.errors import GenerationError, UsageError

_MASK = (1 << 64) - 1
#: Temperatures below this may divide a difference of two logits beyond the largest float64.
_TINY = 1e-200
#: Logits as the model gave them, or in float64 after a penalty.
Scores: TypeAlias = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen.

    Attributes:
        temperature: 0 is greedy (the largest logit; of equals the lowest id): top_k, top_p and min_p change nothing.
        top_k: keep the k largest logits and those equal to the k-th; 0 keeps all.
        top_p: keep the fewest tokens, by probability, whose sum reaches it; in (0, 1].
        min_p: keep tokens of at least this share of the largest probability; in [0, 1].
        repetition_penalty: CTRL's rule (Keskar et al., 2019): logits of ids in the prompt or generated so far are
            divided by it where positive and multiplied where negative. Applies to greedy choice also.
        seed: 0 to 2^64 - 1; None draws one for each request, which the result then reports.

    Raises:
        UsageError: a value outside its range, or NaN.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, Real, lambda x: 0 <= x < math.inf, "a finite number >= 0 (0 is greedy)")
        _check("top_k", self.top_k, Integral, lambda x: x >= 0, "an integer >= 0 (0 keeps all)")
        _check("top_p", self.top_p, Real, lambda x: 0 < x <= 1, "a number in (0, 1] (1 keeps all)")
        _check("min_p", self.min_p, Real, lambda x: 0 <= x <= 1, "a number in [0, 1] (0 keeps all)")
        _check(
            "repetition_penalty",
            self.repetition_penalty,
            Real,
            lambda x: 0 < x < math.inf,
            "a finite number > 0 (1 changes nothing)",
        )
        if self.seed is not None:
            _check("seed", self.seed, Integral, lambda x: 0 <= x <= _MASK, "an integer from 0 to 2^64 - 1, or None")


class SplitMix64:
    """A stream of uniforms in [0, 1), the same on every platform."""

    def __init__(self, seed: int, row: int = 0) -> None:
        self._state = (seed + _mix(row)) & _MASK

    def next_uint64(self) -> int:
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        return _mix(self._state)

    def next_uniform(self) -> float:
        """The upper 53 bits as a float64 in [0, 1)."""
        return (self.next_uint64() >> 11) * 2.0**-53


def row_seed(seed: int, row: int) -> int:
    """The seed with which a prompt alone gets the tokens that it has as row ``row`` of a batch with ``seed``."""
    return (seed + _mix(row)) & _MASK


def draw_seed() -> int:
    """A seed from the operating system, below 2^53: JSON readers that know only doubles keep it exact."""
    return secrets.randbits(53)


class Sampler:
    """Chooses the tokens of one row. ``seed`` is the one in use, also where the options left it open."""

    def __init__(self, options: SamplingOptions, row: int = 0) -> None:
        self.options = options
        self.seed = draw_seed() if options.seed is None else int(options.seed)
        self._random = SplitMix64(self.seed, row)
        self._all_ids = np.arange(0)
        self._may_overflow = options.temperature < _TINY or options.repetition_penalty != 1
        self._takes_largest = options.temperature == 0 and options.repetition_penalty == 1

    def sample(self, logits: NDArray[np.float32], history_ids: Sequence[int]) -> int:
        """The next token. ``logits`` is ``[vocab_size]``, ``history_ids`` the prompt and what was generated so far.

        Raises:
            GenerationError: a logit is NaN or +inf, or all are -inf.
        """
        if self._takes_largest and logits.size:
            # A copy in float64 has the same maximum. NaN counts as one, and +inf or -inf is one only where it must not.
            token_id = int(logits.argmax())
            if math.isfinite(logits.item(token_id)):
                return token_id
        scores = self._penalized(logits, history_ids)
        peak = _usable_peak(scores)
        if self.options.temperature == 0:
            return int(scores.argmax())
        return self.draw(*self._kept(scores, peak))

    def draw(self, ids: NDArray[np.int64], weights: NDArray[np.float64]) -> int:
        """One of ``ids``, ascending, by ``weights`` that need not sum to 1, with the next uniform of the row."""
        uniform = self._random.next_uniform()
        least, most = _total_bounds(weights)
        ranks, running = _ranked_until(weights, most, uniform * most)
        chosen = int(running.searchsorted(uniform * most, side="right"))
        if int(running.searchsorted(uniform * least, side="right")) != chosen:
            chosen = int(running.searchsorted(uniform * _running_sum(weights)[-1], side="right"))
        # Summed in another order, the running sum may end one rounding below the target: then it is the last.
        return int(ids[ranks[min(chosen, len(ranks) - 1)]])

    def distribution(
        self, logits: NDArray[np.float32], history_ids: Sequence[int]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """What ``sample`` draws from: ids, ascending, and their probabilities, both ``[kept]``. Draws nothing.

        Raises:
            GenerationError: as ``sample``.
        """
        scores = self._penalized(logits, history_ids)
        peak = _usable_peak(scores)
        if self.options.temperature == 0:
            return np.array([scores.argmax()], dtype=np.int64), np.ones(1)
        ids, weights = self._kept(scores, peak)
        kept = weights.nonzero()[0]
        ids, weights = ids[kept], weights[kept]
        return ids, weights / _running_sum(weights)[-1]

    def _penalized(self, logits: NDArray[np.float32], history_ids: Sequence[int]) -> Scores:
        """In float64 where the penalty computes with them; else ``logits`` themselves, which are not to be written."""
        penalty = float(self.options.repetition_penalty)
        if penalty == 1 or not len(history_ids):
            return logits
        scores = logits.astype(np.float64)
        seen = np.asarray(history_ids, dtype=np.int64)  # an id that occurs twice is written twice, with one value
        known = scores[seen]
        scores[seen] = np.where(known < 0, known * penalty, known / penalty)
        return scores

    def _kept(self, scores: Scores, peak: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Ids, ascending, that pass top-k, top-p and min-p, and their weights; the largest weight is 1.

        Weights may be 0: those of -inf, and of logits far below ``peak``, the largest.
        """
        options = self.options
        if len(self._all_ids) != len(scores):
            self._all_ids = np.arange(len(scores))
        ids = self._all_ids
        if 0 < options.top_k < len(scores):
            ids = (scores >= np.partition(scores, -int(options.top_k))[-int(options.top_k)]).nonzero()[0]
            scores = scores[ids]
        if self._may_overflow:
            with np.errstate(over="ignore"):  # all but the best go to -inf, as they should
                weights = (scores.astype(np.float64) - peak) / float(options.temperature)
        else:
            weights = np.subtract(scores, peak, dtype=np.float64)
            if options.temperature != 1:
                weights /= float(options.temperature)
        np.exp(weights, out=weights)
        if options.top_p < 1:
            least, most = _total_bounds(weights)
            ranks, running = _ranked_until(weights, most, options.top_p * most)
            # A token stays if the likelier ones sum to less than the mass; so the best does.
            count = int(running.searchsorted(options.top_p * most))
            if int(running.searchsorted(options.top_p * least)) != count:
                count = int(running.searchsorted(options.top_p * _running_sum(weights)[-1]))
            kept = np.sort(ranks[: count + 1])
            ids, weights = ids[kept], weights[kept]
        if options.min_p > 0:
            # Shares of the largest probability are the weights themselves, whatever top-p left of the total.
            kept = (weights >= options.min_p).nonzero()[0]
            ids, weights = ids[kept], weights[kept]
        return ids, weights


def token_logprobs(logits: NDArray[np.float32], token_id: int, top: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Natural log-probabilities under the model itself: no penalty, temperature or filter.

    ``logits`` is ``[vocab_size]``. Returns that of ``token_id``, and the ``top`` likeliest (id, log-probability) by
    (probability descending, id ascending), leaving out tokens of probability 0.

    Raises:
        GenerationError: a logit is NaN or +inf, or all are -inf.
    """
    scores = logits.astype(np.float64)
    scores -= _usable_peak(scores)
    scores -= math.log(float(np.exp(scores).sum()))
    if top <= 0:
        return float(scores[token_id]), ()
    top = min(top, len(scores))
    head = np.flatnonzero(scores >= np.partition(scores, -top)[-top])
    head = head[np.argsort(-scores[head], kind="stable")][:top]
    return float(scores[token_id]), tuple((int(i), float(scores[i])) for i in head if scores[i] > -math.inf)


def _usable_peak(scores: Scores) -> float:
    """The maximum, which alone tells of NaN, +inf and all -inf; single -inf are a mask and stay."""
    peak = float(scores.max()) if scores.size else math.nan
    if not math.isfinite(peak):
        raise GenerationError(
            "The model gave no usable logits",
            found=f"{int(np.isnan(scores).sum())} NaN among {scores.size}, maximum {peak}",
            expected="finite numbers",
            remedy="validate the bundle; a half-precision one may overflow: try fp32 or bf16",
        )
    return peak


def _running_sum(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums from the left, one by one (``np.sum`` adds pairwise, which no other runtime would repeat)."""
    return np.cumsum(weights)


def _total_bounds(weights: NDArray[np.float64]) -> tuple[float, float]:
    """What the total surely lies between, summed one by one or in any other order, and products of it with a uniform.

    Adding one by one is what takes most of a draw's time: each addition waits for the one before. Where both bounds
    choose the same token, as they practically always do, it is the token that the documented sum chooses. (Higham:
    Accuracy and Stability of Numerical Algorithms, 4.2: n numbers >= 0 sum with a relative error below n 2^-53.)
    """
    total = float(weights.sum())
    slack = (len(weights) + 4) * 2.0**-51 * total
    return total - slack, total + slack


def _ranked_until(
    weights: NDArray[np.float64], total: float, mass: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The likeliest weights above 0: indices by (weight descending, index ascending), and their running sum.

    They are as many as it takes for the sum to exceed ``mass``, a part of ``total``, or all. A full sort of 48000
    weights takes milliseconds. What is at least as large as a threshold is sorted instead, and that is a beginning of
    the full order, whatever the threshold: first one that mostly suffices, then one below which all weights together
    are less than what may be missing.
    """
    certain = (total - mass) / len(weights)
    for threshold in (16 * certain, certain):
        if threshold > 0:
            head = (weights >= threshold).nonzero()[0]
            ranks = head[np.argsort(-weights[head], kind="stable")]
            running = _running_sum(weights[ranks])
            if len(running) and running[-1] > mass:
                return ranks, running
    ranks = np.argsort(-weights, kind="stable")[: np.count_nonzero(weights)]
    return ranks, _running_sum(weights[ranks])


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _check(name: str, value: object, kind: type, accepts: Callable[[Any], bool], expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, kind) or not accepts(value):
        raise UsageError(f"{name} has a value that it cannot have", found=repr(value), expected=expected)
