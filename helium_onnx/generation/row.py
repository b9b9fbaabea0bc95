"""One prompt's continuation: token by token from logits, until something ends it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from helium_onnx.generation.rejection import Proposal, Rejection
from helium_onnx.generation.request import Request
from helium_onnx.generation.result import FinishReason, Generation, TokenLogprob
from helium_onnx.generation.sampling import Sampler, token_logprobs
from helium_onnx.generation.speculation import Draft
from helium_onnx.generation.stopping import StopStrings
from helium_onnx.tokenizer import Tokenizer


class Row:
    """Prompt ``index`` of a request whose seed is drawn. ``cached_tokens`` is for the caller to set."""

    def __init__(self, tokenizer: Tokenizer, request: Request, index: int) -> None:
        prompt_ids = request.prompt_ids[index]
        self.finish_reason: FinishReason | None = None
        self.history_ids = list(prompt_ids)  # prompt and generated
        self.prompt_tokens = len(prompt_ids)
        self.full_length = len(prompt_ids) + request.max_new_tokens  # of history_ids, at most
        self.cached_tokens = 0
        self._tokenizer = tokenizer
        self._request = request
        self._ends = () if request.ignore_eos else tokenizer.eos_token_ids
        if request.seeds is None:
            self._sampler = Sampler(request.sampling, index)
        else:
            self._sampler = Sampler(replace(request.sampling, seed=request.seeds[index]))
        self._sample = self._sampler.sample
        self._rejection: Rejection | None = None
        self._stream = tokenizer.stream(prompt_ids)
        self._read = len(prompt_ids)  # tokens whose text was read
        self._stop = StopStrings(request.stop)
        self._reads_at_once = bool(request.stop)  # else text is read when it is asked for
        self._pieces: list[str] = []  # of the text that is certain
        self._taken = 0  # of them
        self._logprobs: list[TokenLogprob] = []
        self._reports_logprobs = request.logprobs is not None

    def accept(self, logits: NDArray[np.float32], proposal: Proposal | None = None) -> int:
        """Choose the next token from ``logits`` ``[vocab_size]``, and return it.

        ``proposal`` is what a draft model drew for this place: the token is then chosen by rejection sampling.

        Raises:
            GenerationError: the logits are not usable.
        """
        history_ids = self.history_ids
        if proposal is None:
            token_id = self._sample(logits, history_ids)
        else:
            self._rejection = self._rejection or Rejection(self._sampler)
            token_id = self._rejection.sample(logits, history_ids, proposal)
        if self._reports_logprobs:
            assert self._request.logprobs is not None
            self._logprobs.append(self._logprob(logits, token_id, self._request.logprobs))
        return self.accept_token(token_id)

    def accept_token(self, token_id: int) -> int:
        """Go on with a token that was chosen already, and return it."""
        history_ids = self.history_ids
        history_ids.append(token_id)
        if token_id in self._ends:
            self.end("eos")
            return token_id
        if self._reads_at_once:
            self._read_text()
            if self._stop.match is not None:
                self.end("stop")
                return token_id
        if len(history_ids) == self.full_length:
            self.end("length")
        return token_id

    def accept_run(self, logits: NDArray[np.float32], draft: Draft) -> tuple[int, int]:
        """Choose tokens from ``logits`` ``[drafted + 1, vocab_size]`` as long as each is the drafted one, and one more.

        Returns how many were chosen, and how many of them were drafted.

        Raises:
            GenerationError: the logits are not usable.
        """
        for position, drafted_id in enumerate(draft.token_ids):
            token_id = self.accept(logits[position], draft.proposals[position] if draft.proposals else None)
            if token_id != drafted_id:
                return position + 1, position
            if self.finish_reason is not None:
                return position + 1, position + 1
        self.accept(logits[-1])
        return len(draft.token_ids) + 1, len(draft.token_ids)

    def take(self) -> str:
        """The text that has become certain since it was last taken; possibly none."""
        if self.finish_reason is None:
            self._read_text()
        begin, end = self._taken, len(self._pieces)
        self._taken = end
        return self._pieces[begin] if end == begin + 1 else "".join(self._pieces[begin:end])

    def end(self, reason: FinishReason) -> None:
        """End the row, unless it has ended; text that was withheld can then be taken. An open stop match wins."""
        if self.finish_reason is not None:
            return
        self._read_text()
        self._pieces.append(self._stop.push(self._stream.finish()) + self._stop.finish())
        self.finish_reason = reason if self._stop.match is None else "stop"

    def generation(self) -> Generation:
        """The row as a result; it must have ended."""
        assert self.finish_reason is not None
        sampling = self._request.sampling
        token_ids = tuple(self.history_ids[self.prompt_tokens :])
        return Generation(
            text="".join(self._pieces),
            token_ids=token_ids,
            finish_reason=self.finish_reason,
            prompt_tokens=self.prompt_tokens,
            seed=None if sampling.temperature == 0 else self._sampler.seed,
            # An interruption may fall between the two lists.
            logprobs=None if self._request.logprobs is None else tuple(self._logprobs[: len(token_ids)]),
            stop=self._stop.match,
            cached_tokens=self.cached_tokens,
        )

    def _read_text(self) -> None:
        """Read the tokens that have come since. An eos is the last one, and no text."""
        history_ids = self.history_ids
        stop = len(history_ids)
        if history_ids[-1] in self._ends and stop > self.prompt_tokens:
            stop -= 1
        while self._read < stop:
            token_id = history_ids[self._read]
            self._read += 1  # first: a token that an interruption falls into is not read twice
            text = self._stream.push(token_id)
            if self._reads_at_once:
                text = self._stop.push(text)
            if text:
                self._pieces.append(text)

    def _logprob(self, logits: NDArray[np.float32], token_id: int, top: int) -> TokenLogprob:
        logprob, likeliest = token_logprobs(logits, token_id, top)
        name = self._tokenizer.id_to_text
        return TokenLogprob(
            token_id, name(token_id), logprob, tuple(TokenLogprob(i, name(i), value) for i, value in likeliest)
        )
