"""A draft model: a smaller model of the same tokenizer runs ahead, token by token."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import numpy as np

from helium_onnx.errors import TokenizerError
from helium_onnx.generation.draft_length import MOST_TOKENS
from helium_onnx.generation.rejection import DRAFT_STREAM, Proposal
from helium_onnx.generation.sampling import Sampler, SamplingOptions
from helium_onnx.generation.step_times import TypicalSeconds
from helium_onnx.runtimes.session import Past, Phase, Session
from helium_onnx.tokenizer import Tokenizer

#: The one kind of its drafts, and how likely their first token is the model's, to begin with.
MODEL_PRIORS = {1: 0.7}
_KIND = 1


class DraftTimes:
    """What drafting takes on this machine; it outlives a request."""

    def __init__(self) -> None:
        self.token, self.prefill_token = TypicalSeconds(), TypicalSeconds()
        """Of a drafted token, and of a token of a prompt that is read."""

    def catching_up(self, tokens: int) -> float:
        """Seconds to run tokens of the text that the draft model has not seen, together."""
        return max(0, tokens) * min(self.token.seconds, self.prefill_token.seconds)


class DraftModel:
    """Drafts for one text. Its past follows the text: it is set back where the text went another way."""

    method: Final = "draft-model"
    source: Final = None  # what it drafts is not known before

    def __init__(
        self,
        session: Session,
        sampling: SamplingOptions,
        times: DraftTimes,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``sampling`` is the request's, with a seed. A draft is greedy where the request is."""
        self.prefill_seconds = 0.0
        """What reading the prompt took within the last ``propose``; nothing but in the first."""
        self.proposals: list[Proposal] = []
        """Of the last draft, where the request samples."""
        self._session, self._times, self._clock = session, times, clock
        self._greedy = sampling.temperature == 0
        self._sampler = Sampler(sampling, DRAFT_STREAM)
        self._past: Past | None = None
        self._ids: list[int] = []  # the text and, until the next look, the last draft
        self._text_tokens = 0  # of _ids, those that are the text's

    @property
    def seconds_per_token(self) -> float:
        """What each token of a draft takes."""
        return self._times.token.seconds

    @property
    def setup_seconds(self) -> float:
        """What catching up with the text takes before the next draft. Two tokens are part of drafting."""
        if self._past is None:
            return 0.0
        return self._times.catching_up(len(self._ids) - int(self._past.lengths[0]) - 2)

    def look(self, history_ids: list[int]) -> int:
        """The kind of draft that can be made of the text ``history_ids``: 1, or 0 where the draft's context is full.

        ``history_ids`` is what it was at the call before, and what has come since.
        """
        agreed = self._text_tokens
        while agreed < min(len(self._ids), len(history_ids)) and self._ids[agreed] == history_ids[agreed]:
            agreed += 1
        self._ids[agreed:] = history_ids[agreed:]
        self._text_tokens = len(history_ids)
        if self._past is not None:
            self._past.lengths[0] = min(int(self._past.lengths[0]), agreed, len(history_ids) - 1)
        return _KIND if len(history_ids) + MOST_TOKENS <= self._session.context_length else 0

    def propose(self, history_ids: list[int], count: int) -> list[int]:
        """The ``count`` tokens that the draft model puts after the text that ``look`` has just seen.

        Raises:
            GenerationError: its logits are not usable.
        """
        self.proposals, self.prefill_seconds = [], 0.0
        begun = self._clock()
        if self._past is None:
            self._past = self._session.new_past(1)
            if len(history_ids) > 1:
                self._session.run("prefill", np.array([history_ids[:-1]], dtype=np.int64), self._past)
                self._times.prefill_token.observe((self._clock() - begun) / (len(history_ids) - 1))
            self._ids.append(self._next(self._past))  # the first step may wait for the session to load
            begun, before = self._clock(), begun
            self.prefill_seconds = begun - before
        setup = self.setup_seconds
        made = len(self._ids) - len(history_ids)
        for _ in range(count - made):
            self._ids.append(self._next(self._past))
        if count > made:
            self._times.token.observe(max(0.0, self._clock() - begun - setup) / (count - made))
        return self._ids[len(history_ids) :]

    def _next(self, past: Past) -> int:
        """Run what the past lacks of ``_ids`` and choose the token after it."""
        missing = np.array([self._ids[int(past.lengths[0]) :]], dtype=np.int64)
        phase: Phase = "prefill" if missing.shape[1] > MOST_TOKENS else "decode"
        logits = self._session.run(phase, missing, past)[0, -1]
        if self._greedy:
            return self._sampler.sample(logits, self._ids)
        ids, probabilities = self._sampler.distribution(logits, self._ids)
        token_id = self._sampler.draw(ids, probabilities)
        self.proposals.append(Proposal(token_id, ids, probabilities))
        return token_id


def check_same_tokenizer(tokenizer: Tokenizer, draft_tokenizer: Tokenizer) -> None:
    """Raises TokenizerError unless a draft model's token ids mean what the model's do."""
    if draft_tokenizer.definition != tokenizer.definition:
        raise TokenizerError(
            "The draft model has another tokenizer",
            found=f"{draft_tokenizer.vocab_size} ids, of another tokenizer.json",
            expected=f"the {tokenizer.vocab_size} ids of the model's tokenizer.json",
            remedy="take a smaller model of the same family, or the same model under a smaller recipe",
        )
