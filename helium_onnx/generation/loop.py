"""The generation loop: each prompt is prefilled alone, then all rows decode together.

Rows are ragged: nothing is padded, since a past knows the length of each row. So the tokens of a prompt in a batch are
those of the prompt alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from helium_onnx.errors import GenerationError
from helium_onnx.generation.result import FinishReason, Generation, GenerationResult, Timings, TokenLogprob
from helium_onnx.generation.sampling import Sampler, SamplingOptions, draw_seed, token_logprobs
from helium_onnx.generation.stopping import StopStrings
from helium_onnx.runtimes.session import Past, Phase, Session
from helium_onnx.tokenizer import Tokenizer


@dataclass(frozen=True)
class Request:
    """A checked request: what ``LanguageModel`` makes of the caller's arguments.

    ``prompt_ids`` fit the context together with ``max_new_tokens``; ``logprobs`` is the number of alternatives to
    report for each token, None for no log-probabilities at all.
    """

    prompt_ids: tuple[list[int], ...]
    max_new_tokens: int
    sampling: SamplingOptions
    stop: tuple[str, ...]
    logprobs: int | None
    ignore_eos: bool


class Row:
    """One prompt's continuation: token by token from logits, until something ends it."""

    def __init__(self, tokenizer: Tokenizer, request: Request, index: int) -> None:
        prompt_ids = request.prompt_ids[index]
        self.finish_reason: FinishReason | None = None
        self.history_ids = list(prompt_ids)  # prompt and generated
        self._tokenizer = tokenizer
        self._request = request
        self._prompt_tokens = len(prompt_ids)
        self._sampler = Sampler(request.sampling, index)
        self._stream = tokenizer.stream(prompt_ids)
        self._stop = StopStrings(request.stop)
        self._shown: list[str] = []
        self._logprobs: list[TokenLogprob] = []

    @property
    def generated(self) -> int:
        return len(self.history_ids) - self._prompt_tokens

    def accept(self, logits: NDArray[np.float32]) -> str:
        """Choose the next token from ``logits`` ``[vocab_size]``; return the text that is now certain, possibly none.

        Raises:
            GenerationError: the logits are not usable.
        """
        token_id = self._sampler.sample(logits, self.history_ids)
        if self._request.logprobs is not None:
            self._logprobs.append(self._logprob(logits, token_id, self._request.logprobs))
        self.history_ids.append(token_id)
        ended = token_id in self._tokenizer.eos_token_ids and not self._request.ignore_eos
        text = "" if ended else self._stop.push(self._stream.push(token_id))
        self._shown.append(text)
        if self._stop.match is not None:
            return text + self.end("stop")
        if ended:
            return text + self.end("eos")
        if self.generated == self._request.max_new_tokens:
            return text + self.end("length")
        return text

    def end(self, reason: FinishReason) -> str:
        """End the row, unless it has ended; return the text that had been withheld. An open stop match wins."""
        if self.finish_reason is not None:
            return ""
        text = self._stop.push(self._stream.finish()) + self._stop.finish()
        self._shown.append(text)
        self.finish_reason = reason if self._stop.match is None else "stop"
        return text

    def generation(self) -> Generation:
        """The row as a result; it must have ended."""
        assert self.finish_reason is not None
        sampling = self._request.sampling
        token_ids = tuple(self.history_ids[self._prompt_tokens :])
        return Generation(
            text="".join(self._shown),
            token_ids=token_ids,
            finish_reason=self.finish_reason,
            prompt_tokens=self._prompt_tokens,
            seed=None if sampling.temperature == 0 else self._sampler.seed,
            # An interruption may fall between the two lists.
            logprobs=None if self._request.logprobs is None else tuple(self._logprobs[: len(token_ids)]),
            stop=self._stop.match,
        )

    def _logprob(self, logits: NDArray[np.float32], token_id: int, top: int) -> TokenLogprob:
        logprob, likeliest = token_logprobs(logits, token_id, top)
        name = self._tokenizer.id_to_text
        return TokenLogprob(
            token_id, name(token_id), logprob, tuple(TokenLogprob(i, name(i), value) for i, value in likeliest)
        )


class Loop:
    """Runs one request over a session. ``prefilled`` is set once there is something that an interruption can keep."""

    def __init__(
        self, session: Session, tokenizer: Tokenizer, request: Request, *, is_current: Callable[[], bool]
    ) -> None:
        """``is_current`` is asked before each step: a session has one past, and a later request takes it over."""
        if request.sampling.seed is None:
            # One seed for the request: the rows derive theirs from it.
            request = replace(request, sampling=replace(request.sampling, seed=draw_seed()))
        self.prefilled = False
        self._session = session
        self._is_current = is_current
        self._prompt_ids = request.prompt_ids
        self._rows = [Row(tokenizer, request, index) for index in range(len(request.prompt_ids))]
        self._prompt_tokens = self._decode_tokens = 0
        self._prefill_seconds = self._decode_seconds = self._first_seconds = self._total_seconds = 0.0
        self._started: float | None = None

    def events(self) -> Iterator[tuple[int, str]]:
        """Run to the end, yielding (row, text) whenever a row has text to show.

        Raises:
            GenerationError: logits are not usable, or another request took the session over.
        """
        self._started = time.perf_counter()
        past = self._session.new_past(len(self._rows))
        for index, row in enumerate(self._rows):
            if text := self._prefill(row, self._prompt_ids[index], past.row(index)):
                yield index, text
        while any(row.finish_reason is None for row in self._rows):
            yield from self._decode(past)
        self._stop_clock()

    def interrupt(self) -> list[tuple[int, str]]:
        """End what has not ended as ``interrupted``; return (row, text) that had been withheld."""
        tails = [(index, row.end("interrupted")) for index, row in enumerate(self._rows)]
        self._stop_clock()
        return [(index, text) for index, text in tails if text]

    def result(self) -> GenerationResult:
        """The result of a request that has ended, by itself or interrupted."""
        timings = Timings(
            prefill_seconds=self._prefill_seconds,
            decode_seconds=self._decode_seconds,
            time_to_first_token_seconds=self._first_seconds,
            total_seconds=self._total_seconds,
            prefill_tokens_per_second=_rate(self._prompt_tokens, self._prefill_seconds),
            decode_tokens_per_second=_rate(self._decode_tokens, self._decode_seconds),
        )
        return GenerationResult(tuple(row.generation() for row in self._rows), timings)

    def _prefill(self, row: Row, prompt_ids: list[int], past: Past) -> str:
        begun = time.perf_counter()
        logits = self._run("prefill", np.array([prompt_ids], dtype=np.int64), past)
        self.prefilled = True
        text = row.accept(logits[0, -1])
        now = time.perf_counter()
        self._prefill_seconds += now - begun
        self._prompt_tokens += len(prompt_ids)
        if self._first_seconds == 0 and self._started is not None:
            self._first_seconds = now - self._started
        return text

    def _decode(self, past: Past) -> list[tuple[int, str]]:
        """One token for every row that goes on."""
        begun = time.perf_counter()
        ended = [index for index, row in enumerate(self._rows) if row.finish_reason is not None]
        lengths = past.lengths[ended].copy()
        last_ids = np.array([[row.history_ids[-1]] for row in self._rows], dtype=np.int64)
        logits = self._run("decode", last_ids, past)
        # A row that had ended ran a dummy; forgotten each time, it never grows past the context.
        past.lengths[ended] = lengths
        shown: list[tuple[int, str]] = []
        for index, row in enumerate(self._rows):
            if row.finish_reason is None:
                self._decode_tokens += 1
                if text := row.accept(logits[index, -1]):
                    shown.append((index, text))
        self._decode_seconds += time.perf_counter() - begun
        return shown

    def _run(self, phase: Phase, input_ids: NDArray[np.int64], past: Past) -> NDArray[np.float32]:
        if not self._is_current():
            raise GenerationError(
                "This stream cannot go on",
                found="a later request of the same model has taken its keys and values over",
                expected="one request at a time",
                remedy="read a stream to its end, or close() it, before the next request",
            )
        return self._session.run(phase, input_ids, past)

    def _stop_clock(self) -> None:
        if self._started is not None and self._total_seconds == 0:
            self._total_seconds = time.perf_counter() - self._started


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 else 0.0
