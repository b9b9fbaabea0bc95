"""Rejection sampling: a token that another model proposed becomes one of the model's own distribution.

Leviathan, Kalman, Matias: Fast Inference from Transformers via Speculative Decoding (2023), section 2.3: x, drawn from
q, is accepted with probability min(1, p(x) / q(x)); otherwise a token is drawn from max(p - q, 0), normalized. The
result is distributed as p, whatever q is. p and q are the distributions after penalty, temperature and all filters.

Random numbers, all from the request's seed: the draft model draws its tokens from SplitMix64's stream of row 2^64 - 1,
each test takes one uniform of row 2^64 - 2, and a draw from the residual, or from p where nothing was proposed, one of
the row's own stream. No batch has so many rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from helium_onnx.generation.sampling import Sampler, SplitMix64

DRAFT_STREAM = (1 << 64) - 1
_TEST_STREAM = (1 << 64) - 2


@dataclass(frozen=True)
class Proposal:
    """A token and the distribution that it was drawn from: ``ids``, ascending, and ``probabilities``, ``[kept]``."""

    token_id: int
    ids: NDArray[np.int64]
    probabilities: NDArray[np.float64]


class Rejection:
    """Chooses the tokens of one row where a draft model under sampling proposes them."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._random = SplitMix64(sampler.seed, _TEST_STREAM)

    def sample(self, logits: NDArray[np.float32], history_ids: list[int], proposal: Proposal) -> int:
        """The next token, distributed as ``Sampler.sample``'s. It is the proposed one if, and only if, it is accepted.

        ``logits`` is ``[vocab_size]``, ``history_ids`` the prompt and what was generated so far.

        Raises:
            GenerationError: a logit is NaN or +inf, or all are -inf.
        """
        ids, target = self._sampler.distribution(logits, history_ids)
        proposed = _probability_of(proposal.token_id, ids, target)
        drafted = _probability_of(proposal.token_id, proposal.ids, proposal.probabilities)
        if self._random.next_uniform() * drafted < proposed:
            return proposal.token_id
        residual = np.maximum(target - _probabilities_at(ids, proposal), 0.0)
        kept = np.flatnonzero(residual)
        if not len(kept):  # p and q are one distribution, but for the last bit
            return self._sampler.draw(ids, target)
        return self._sampler.draw(ids[kept], residual[kept])


def _probability_of(token_id: int, ids: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    index = int(np.searchsorted(ids, token_id))
    return float(probabilities[index]) if index < len(ids) and ids[index] == token_id else 0.0


def _probabilities_at(ids: NDArray[np.int64], proposal: Proposal) -> NDArray[np.float64]:
    """q of each of ``ids``; 0 for those that the draft model's filters left out."""
    indices = np.minimum(np.searchsorted(proposal.ids, ids), len(proposal.ids) - 1)
    return np.where(proposal.ids[indices] == ids, proposal.probabilities[indices], 0.0)
