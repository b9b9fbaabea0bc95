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
from helium_onnx.generation.draft_watch import DraftWatch
from helium_onnx.generation.rejection import Proposal
from helium_onnx.generation.result import SpeculationMethod, SpeculationStatistics

#: The most plain steps without looking for a copy. What a look touches is no longer in the processor's caches after a
#: step: it takes 0.5 us in a loop of its own and 5 us between two steps (measured), of 150 us that a small model takes.
_LONGEST_PAUSE = 7


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
    def source(self) -> int | None:
        """Where in the text the draft stands that ``look`` has found, if drafts are copies; else None."""
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
        self.pause = 0
        """Plain steps to make before ``draft`` is asked again, where nothing promises to pay."""
        self._drafter, self._lengths, self._clock = drafter, lengths, clock
        self._watch = DraftWatch(lengths)
        self._refused = 0  # the pause before, plus one
        self._drafting_steps = self._tokens = self._drafted = self._accepted = 0  # all of steps with drafts

    def draft(self, history_ids: list[int], full_length: int) -> Draft | None:
        """Tokens that may follow; None for a plain step. The text ends with ``full_length`` tokens at the latest."""
        drafter = self._drafter
        goes_on = self._watch.compare(history_ids)
        kind = drafter.look(history_ids)
        count = 0
        if kind:
            # The token after a draft is a new one as well.
            count = self._lengths.choose(
                kind,
                full_length - len(history_ids) - 1,
                setup_seconds=drafter.setup_seconds,
                seconds_per_token=drafter.seconds_per_token,
            )
        if count == 0:
            if drafter.source is not None:
                if kind:
                    self._watch.follow(kind, drafter.source, history_ids)
                self.pause = min(self._refused, 1 if goes_on else _LONGEST_PAUSE)
                self._refused = 2 * self.pause + 1
            return None
        self.pause = self._refused = 0
        self._watch.forget()
        begun = self._clock()
        token_ids = drafter.propose(history_ids, count)
        prefill_seconds = drafter.prefill_seconds
        seconds = self._clock() - begun - prefill_seconds
        return Draft(kind, token_ids, drafter.proposals, seconds, prefill_seconds)

    def record_plain(self, seconds: float) -> None:
        """The step that ``draft`` was asked for took ``seconds``; ``pause`` more like it are to follow."""
        self._lengths.record_plain(seconds, 1 + self.pause)

    def record_draft(self, draft: Draft, tokens: int, accepted: int, seconds: float) -> None:
        """A step gave ``tokens``, ``accepted`` of them drafted; after the draft was made it took ``seconds``."""
        drafted = len(draft.token_ids)
        self._drafting_steps += 1
        self._tokens += tokens
        self._drafted += drafted
        self._accepted += accepted
        self._lengths.record_draft(draft.kind, drafted, tokens, accepted, seconds, draft.seconds)

    def statistics(self, tokens: int) -> SpeculationStatistics:
        """What came of it so far; all steps together gave ``tokens``."""
        steps = tokens - self._tokens + self._drafting_steps  # a plain one gives one token
        return SpeculationStatistics(
            method=self._drafter.method,
            steps=steps,
            drafting_steps=self._drafting_steps,
            drafted=self._drafted,
            accepted=self._accepted,
            tokens_per_step=tokens / steps if steps else 0.0,
        )
