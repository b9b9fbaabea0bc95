"""A session that computes what a row shares with the row before it only once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from helium_onnx.runtimes.session import Past, Phase, Session


@dataclass
class TokenCount:
    """Tokens that callers asked for (``requested``) and those that the model ran (``computed``)."""

    requested: int = 0
    computed: int = 0

    def __str__(self) -> str:
        share = 1 - self.computed / self.requested if self.requested else 0.0
        return f"{self.computed:,} of {self.requested:,} tokens computed, {share:.1%} taken from the prefix cache"


class PrefixSession:
    """``session``, but with one row ``new_past`` gives the past of the row before, still full (a ``Session``).

    The prefill that follows is then of a whole row: the past is set back to where the row departs from the one before,
    and only the rest is computed. That is exact: a slot beyond a past's length is masked, and written again before it
    is read. Several rows at once share nothing, since a session has no way to copy keys and values between rows.

    ``enabled=False`` only counts.
    """

    def __init__(self, session: Session, *, enabled: bool = True) -> None:
        self.count = TokenCount()
        self._session = session
        self._enabled = enabled
        self._past: Past | None = None
        self._begins = False
        self._token_ids: list[int] = []  # those that the past holds, unless its length was set back
        self._prefilled = 0
        self._logits: NDArray[np.float32] = np.zeros((1, 1, 0), np.float32)  # after the first _prefilled tokens

    @property
    def context_length(self) -> int:
        """See ``Session``."""
        return self._session.context_length

    @property
    def vocab_size(self) -> int:
        """See ``Session``."""
        return self._session.vocab_size

    @property
    def exact_split(self) -> int:
        """See ``Session``."""
        return self._session.exact_split

    def new_past(self, rows: int) -> Past:
        """A past of ``rows`` rows. With one row it may hold the tokens of the row before, until the next prefill."""
        if rows != 1 or not self._enabled:
            self._forget()
            return self._session.new_past(rows)
        if self._past is None:
            self._past = self._session.new_past(1)
        self._begins = True
        return self._past

    def run(self, phase: Phase, input_ids: NDArray[np.int64], past: Past) -> NDArray[np.float32]:
        """See ``Session``. The first prefill after ``new_past(1)`` takes all of the row's tokens."""
        self.count.requested += input_ids.size
        if self._past is None:
            self.count.computed += input_ids.size
            return self._session.run(phase, input_ids, past)
        new = input_ids
        before = self._token_ids[: int(past.lengths[0])]
        if self._begins and phase == "prefill":
            shared = _common_prefix(self._token_ids, input_ids[0].tolist())
            if shared == input_ids.shape[1] == self._prefilled:
                past.lengths[:] = shared
                self._token_ids, self._begins = self._token_ids[:shared], False
                return self._logits.copy()
            start = min(shared, input_ids.shape[1] - 1)  # the last token's logits are asked for
            past.lengths[:] = start
            new, before = input_ids[:, start:], self._token_ids[:start]
        self._token_ids = []  # should the run fail, nothing is relied upon
        logits = self._session.run(phase, new, past)
        self.count.computed += new.size
        self._token_ids, self._begins = before + new[0].tolist(), False
        if phase == "prefill":
            self._prefilled, self._logits = len(self._token_ids), logits.copy()
        elif len(before) < self._prefilled:  # set back by the caller
            self._prefilled = 0
        return logits

    def _forget(self) -> None:
        self._past = None
        self._token_ids = []


def _common_prefix(left: list[int], right: list[int]) -> int:
    """Number of leading ids in which both agree."""
    length = min(len(left), len(right))
    differing = np.flatnonzero(np.array(left[:length]) != np.array(right[:length]))
    return int(differing[0]) if len(differing) else length
