"""Speculative decoding: drafted tokens are verified together, in one call of the model.

The model runs over the last token and a draft of k tokens and gives k + 1 rows of logits; each row's token is chosen as
ever, and as long as it is the drafted one, the next row is that of a plain step. So a step gives 1 to k + 1 tokens, and
they are those of plain decoding:

- Greedily, the same sampler sees the same logits and the same history.
- Sampling with prompt lookup, too: a lookup puts all its probability on one token, and to draw from the model's own
  distribution and to compare is rejection sampling for such a draft. One uniform for each token, in the same order: the
  same seed gives the very same tokens.
- Sampling with a draft model, the tokens have the same distribution (rejection.py). They are others than plain
  decoding's for a seed, and depend on the lengths of drafts, which measured times decide.

"The same logits" holds bit for bit where ``Session.exact_split`` is 1, and to the kernels' rounding elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from helium_onnx.generation.draft_length import DraftLength
from helium_onnx.generation.rejection import Proposal
from helium_onnx.generation.result import SpeculationMethod, SpeculationStatistics


class Drafter(Protocol):
    """Proposes what may follow a text: ``PromptLookup`` or ``DraftModel``."""

    @property
    def method(self) -> SpeculationMethod: ...

    @property
    def setup_seconds(self) -> float:
        """What the next draft takes, whatever its length."""
        ...

    @property
    def seconds_per_token(self) -> float:
        """What each of its tokens takes."""
        ...

    @property
    def prefill_seconds(self) -> float:
        """What reading the prompt took within the last ``propose``: once for a draft model."""
        ...

    @property
    def proposals(self) -> list[Proposal]:
        """The distributions that the last draft's tokens were drawn from; empty where they were not drawn."""
        ...

    def look(self, history_ids: list[int]) -> int:
        """The kind of draft that can be made, as ``DraftLength`` counts them; 0 for none."""
        ...

    def propose(self, history_ids: list[int], count: int) -> list[int]:
        """A draft of ``count`` tokens, of the kind that ``look`` has just named."""
        ...


class Draft(NamedTuple):
    """Tokens to verify; ``proposals`` is empty unless they were drawn at random.

    Making it took ``seconds``, and reading the prompt before it ``prefill_seconds``.
    """

    kind: int
    token_ids: list[int]
    proposals: list[Proposal]
    seconds: float
    prefill_seconds: float


class Speculation:
    """Drafts for the one row of a request, and counts what became of them."""

    def __init__(
        self, drafter: Drafter, lengths: DraftLength, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._drafter, self._lengths, self._clock = drafter, lengths, clock
        self._steps = self._tokens = self._drafting_steps = self._drafted = self._accepted = 0

    def draft(self, history_ids: list[int], most: int) -> Draft | None:
        """At most ``most`` tokens that may follow; None for a plain step."""
        kind = self._drafter.look(history_ids) if most > 0 else 0
        if kind == 0:
            return None
        count = self._lengths.choose(
            kind,
            most,
            setup_seconds=self._drafter.setup_seconds,
            seconds_per_token=self._drafter.seconds_per_token,
        )
        if count == 0:
            return None
        begun = self._clock()
        token_ids = self._drafter.propose(history_ids, count)
        prefill_seconds = self._drafter.prefill_seconds
        seconds = self._clock() - begun - prefill_seconds
        return Draft(kind, token_ids, self._drafter.proposals, seconds, prefill_seconds)

    def record_plain(self, seconds: float) -> None:
        """A step without a draft took ``seconds``."""
        self._steps += 1
        self._tokens += 1
        self._lengths.record_plain(seconds)

    def record_draft(self, draft: Draft, tokens: int, accepted: int, seconds: float) -> None:
        """A step gave ``tokens``, ``accepted`` of them drafted; after the draft was made it took ``seconds``."""
        drafted = len(draft.token_ids)
        self._steps += 1
        self._tokens += tokens
        self._drafting_steps += 1
        self._drafted += drafted
        self._accepted += accepted
        self._lengths.record_draft(draft.kind, drafted, tokens, accepted, seconds, draft.seconds)

    def statistics(self) -> SpeculationStatistics:
        """What came of it so far."""
        return SpeculationStatistics(
            method=self._drafter.method,
            steps=self._steps,
            drafting_steps=self._drafting_steps,
            drafted=self._drafted,
            accepted=self._accepted,
            tokens_per_step=self._tokens / self._steps if self._steps else 0.0,
        )
