"""The generation loop: each prompt is prefilled alone, then all rows decode together, or a single one with drafts.

Rows are ragged: nothing is padded, since a past knows the length of each row. So the tokens of a prompt in a batch are
those of the prompt alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import numpy as np

from helium_onnx.errors import GenerationError
from helium_onnx.generation.prefix_cache import PrefixCache
from helium_onnx.generation.request import Request
from helium_onnx.generation.result import GenerationResult, Timings
from helium_onnx.generation.row import Row
from helium_onnx.generation.speculation import Draft, Speculation
from helium_onnx.runtimes.session import GreedySession, Past, Session
from helium_onnx.tokenizer import Tokenizer


class Loop:
    """Runs one request over a session. ``prefilled`` is set once there is something that an interruption can keep."""

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        request: Request,
        *,
        is_current: Callable[[], bool],
        prefix_cache: PrefixCache | None = None,
        speculation: Speculation | None = None,
        streams: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``is_current`` is asked before each step: a session has one past, and a later request takes it over.

        ``speculation`` drafts for the only row; with several it must be None. ``streams``: text is wanted as soon as it
        is certain, not only at the end.
        """
        assert speculation is None or len(request.prompt_ids) == 1
        request = request.seeded()
        self.prefilled = False
        self._session = session
        # A session that chooses the tokens itself, where nothing else is wanted of the logits.
        takes_largest = request.takes_largest and speculation is None
        self._greedy = session if takes_largest and isinstance(session, GreedySession) else None
        self._is_current = is_current
        self._prefix_cache = prefix_cache
        self._speculation = speculation
        self._streams, self._clock = streams, clock
        self._rows = [Row(tokenizer, request, index) for index in range(len(request.prompt_ids))]
        self._past: Past | None = None
        self._last_id = np.zeros((1, 1), np.int64)
        self._computed_tokens = 0
        self._prefill_seconds = self._decode_seconds = self._first_seconds = self._total_seconds = 0.0
        self._started: float | None = None

    def events(self) -> Iterator[tuple[int, str]]:
        """Run to the end, yielding (row, text) whenever a row has text to show, or at the end.

        Raises:
            GenerationError: logits are not usable, or another request took the session over.
        """
        self._started = self._clock()
        past = self._past = self._session.new_past(len(self._rows))
        for index, row in enumerate(self._rows):
            self._prefill(row, past.row(index))
            if self._streams and (text := row.take()):
                yield index, text
            self._keep(index)  # for the next prompt; after the text, which has waited enough
        if self._greedy is not None and any(row.finish_reason is None for row in self._rows):
            yield from self._decode_greedily(self._greedy, past)
        elif len(self._rows) == 1:
            yield from self._decode_alone(self._rows[0], past)
        while any(row.finish_reason is None for row in self._rows):
            self._step_together(past)
            for index, row in enumerate(self._rows):
                if self._streams and (text := row.take()):
                    yield index, text
        for index, row in enumerate(self._rows):
            if text := row.take():
                yield index, text
        self._stop_clock()
        self._settle()

    def interrupt(self) -> list[tuple[int, str]]:
        """End what has not ended as ``interrupted``; return (row, text) that was not yielded."""
        self._stop_clock()
        for row in self._rows:
            row.end("interrupted")
        self._settle()
        return [(index, text) for index, row in enumerate(self._rows) if (text := row.take())]

    def result(self) -> GenerationResult:
        """The result of a request that has ended, by itself or interrupted."""
        decode_tokens = sum(max(0, len(row.history_ids) - row.prompt_tokens - 1) for row in self._rows)
        timings = Timings(
            prefill_seconds=self._prefill_seconds,
            decode_seconds=self._decode_seconds,
            time_to_first_token_seconds=self._first_seconds,
            total_seconds=self._total_seconds,
            prefill_tokens_per_second=_rate(self._computed_tokens, self._prefill_seconds),
            decode_tokens_per_second=_rate(decode_tokens, self._decode_seconds),
        )
        statistics = None if self._speculation is None else self._speculation.statistics(decode_tokens)
        return GenerationResult(tuple(row.generation() for row in self._rows), timings, statistics)

    def _prefill(self, row: Row, past: Past) -> None:
        self._check_current()
        begun = self._clock()
        if self._prefix_cache is not None:
            row.cached_tokens = self._prefix_cache.restore(row.history_ids, past)
        rest = np.array([row.history_ids[row.cached_tokens :]], dtype=np.int64)
        logits = self._session.run("prefill", rest, past)
        self.prefilled = True
        row.accept(logits[0, -1])
        now = self._clock()
        self._prefill_seconds += now - begun
        self._computed_tokens += rest.size
        if self._first_seconds == 0 and self._started is not None:
            self._first_seconds = now - self._started

    def _decode_alone(self, row: Row, past: Past) -> Iterator[tuple[int, str]]:
        """The steps of the only row: one token each, or those of a draft that hold and the one after them.

        A small model's step takes 0.15 ms, and what stands between two of them is no longer in the processor's caches:
        so it is little, it is looked up before, and the clock is asked where somebody wants to know.
        """
        clock, run, accept, history_ids = self._clock, self._session.run, row.accept, row.history_ids
        speculation, last_id, streams = self._speculation, self._last_id, self._streams
        text, pause = "", 0
        logits = row_logits = np.empty(0, np.float32)
        self._check_current()
        begun = clock()
        try:
            while row.finish_reason is None:
                asks = speculation is not None and not pause
                if asks:
                    assert speculation is not None
                    step_begun = clock()
                    draft = speculation.draft(history_ids, row.full_length)
                    pause = speculation.pause
                    if draft is not None:
                        self._verify(row, past, draft, step_begun)
                        begun += draft.prefill_seconds
                elif pause:
                    pause -= 1
                if not asks or draft is None:
                    last_id[0, 0] = history_ids[-1]
                    if (given := run("decode", last_id, past)) is not logits:
                        logits, row_logits = given, given[0, 0]  # once, where a session gives the same array each time
                    accept(row_logits)
                    if asks:
                        assert speculation is not None
                        speculation.record_plain(clock() - step_begun)
                if streams and (text := row.take()):
                    self._decode_seconds += clock() - begun
                    begun = math.inf
                    yield 0, text
                    if row.finish_reason is None:
                        self._check_current()  # who has the text may have begun another request
                    begun = clock()
        finally:  # also of an interrupted step
            self._decode_seconds += max(0.0, clock() - begun)

    def _decode_greedily(self, session: GreedySession, past: Past) -> Iterator[tuple[int, str]]:
        """The steps of all rows over a session that runs ahead; what it ran behind the last token is forgotten."""
        clock, rows, streams = self._clock, self._rows, self._streams
        self._check_current()
        begun = clock()
        last_ids = np.array([[row.history_ids[-1]] for row in rows], dtype=np.int64)
        steps = session.greedy(last_ids, past)
        try:
            for token_ids in steps:
                for index, row in enumerate(rows):
                    if row.finish_reason is None:
                        row.accept_token(token_ids.item(index))
                    if row.finish_reason is not None:
                        # From now on it is a dummy; held back each time, it never grows past the context.
                        past.lengths[index] = len(row.history_ids) - 1
                if all(row.finish_reason is not None for row in rows):
                    break
                shown = False
                for index, row in enumerate(rows):
                    if streams and (text := row.take()):
                        self._decode_seconds += max(0.0, clock() - begun)
                        begun, shown = math.inf, True
                        yield index, text
                if shown:
                    self._check_current()  # who has the text may have begun another request
                    begun = clock()
        finally:  # also of an interrupted step
            steps.close()
            self._decode_seconds += max(0.0, clock() - begun)

    def _verify(self, row: Row, past: Past, draft: Draft, begun: float) -> None:
        """The rest of a step that has begun with a draft."""
        assert self._speculation is not None
        new_ids = np.array([[row.history_ids[-1], *draft.token_ids]], dtype=np.int64)
        logits = self._session.run("decode", new_ids, past)[0]
        tokens, accepted = row.accept_run(logits, draft)
        past.lengths[0] = len(row.history_ids) - 1  # forget what was not accepted
        seconds = self._clock() - begun - draft.prefill_seconds
        self._prefill_seconds += draft.prefill_seconds
        self._speculation.record_draft(draft, tokens, accepted, seconds - draft.seconds)

    def _step_together(self, past: Past) -> None:
        """One token for every row that goes on."""
        self._check_current()
        begun = self._clock()
        ended = [index for index, row in enumerate(self._rows) if row.finish_reason is not None]
        lengths = past.lengths[ended].copy()
        last_ids = np.array([[row.history_ids[-1]] for row in self._rows], dtype=np.int64)
        logits = self._session.run("decode", last_ids, past)
        # A row that had ended ran a dummy; forgotten each time, it never grows past the context.
        past.lengths[ended] = lengths
        for index, row in enumerate(self._rows):
            if row.finish_reason is None:
                row.accept(logits[index, -1])
        self._decode_seconds += self._clock() - begun

    def _settle(self) -> None:
        """Wherever the request has ended: let the past hold the text's tokens and no more, and keep them."""
        if self._past is None or not self._is_current():
            return  # nothing was run, or it is a later request's by now
        for index, row in enumerate(self._rows):
            # All tokens but the last were surely run as they stand; after an interruption, drafts may follow them.
            self._past.lengths[index] = min(int(self._past.lengths[index]), len(row.history_ids) - 1)
            self._keep(index)

    def _keep(self, index: int) -> None:
        """Let the prefix cache have what the past holds of a row, as far as a later prompt may use it."""
        if self._prefix_cache is not None and self._past is not None and self._is_current():
            row = self._rows[index]
            count = min(int(self._past.lengths[index]), len(row.history_ids) - 1)
            if not self._prefix_cache.takes_decoded:
                count = min(count, row.prompt_tokens)
            self._prefix_cache.keep(row.history_ids[:count], self._past.row(index))

    def _check_current(self) -> None:
        if not self._is_current():
            raise GenerationError(
                "This stream cannot go on",
                found="a later request of the same model has taken its keys and values over",
                expected="one request at a time",
                remedy="read a stream to its end, or close() it, before the next request",
            )

    def _stop_clock(self) -> None:
        if self._started is not None and self._total_seconds == 0:
            self._total_seconds = self._clock() - self._started


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 else 0.0
