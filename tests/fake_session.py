"""A session of forty lines: deterministic, checks how it is called, and records it."""

from __future__ import annotations

import zlib
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helium_onnx.runtimes.session import Past, Phase


class FakePast:
    """``rows[i]`` is [ids so far, number of prompt tokens]; a row's view shares both it and its length."""

    def __init__(self, rows: list[list[list[int]]], lengths: NDArray[np.int64]) -> None:
        self.rows, self.lengths = rows, lengths

    def row(self, index: int) -> FakePast:
        return FakePast(self.rows[index : index + 1], self.lengths[index : index + 1])

    def read_slots(self, start: int, stop: int) -> list[NDArray[np.int64]]:
        return [np.array(self.rows[0][0][start:stop], np.int64).reshape(1, -1, 1)]

    def write_slots(self, tensors: list[NDArray[np.int64]]) -> None:
        self.rows[0][0][self.lengths[0] :] = tensors[0].ravel().tolist()
        self.lengths[0] = len(self.rows[0][0])


class FakeSession:
    """Logits of a row follow from its own tokens alone: a hash of them or, with ``script``, its next id."""

    exact_split = 1

    def __init__(self, *, vocab_size: int = 6000, context_length: int = 256, script: Sequence[int] = ()) -> None:
        self.vocab_size, self.context_length, self.script = vocab_size, context_length, script
        self.calls: list[tuple[Phase, list[list[int]]]] = []
        self.interrupt_at: int | None = None  # the call (from 0) that raises KeyboardInterrupt
        self.past = FakePast([], np.zeros(0, dtype=np.int64))
        self._logits = np.zeros((0, 1, vocab_size), dtype=np.float32)

    def new_past(self, rows: int) -> FakePast:
        self.past = FakePast([[[], []] for _ in range(rows)], np.zeros(rows, dtype=np.int64))
        return self.past

    def run(self, phase: Phase, input_ids: NDArray[np.int64], past: Past) -> NDArray[np.float32]:
        assert isinstance(past, FakePast)
        self._logits[:] = np.nan  # "only valid until the next call"
        self.calls.append((phase, input_ids.tolist()))
        rows, new = input_ids.shape
        assert input_ids.dtype == np.int64
        assert rows == len(past.rows) and new > 0
        assert rows == 1 or (phase, new) == ("decode", 1)
        if self.interrupt_at == len(self.calls) - 1:
            raise KeyboardInterrupt
        self._logits = np.empty((rows, 1 if phase == "prefill" else new, self.vocab_size), dtype=np.float32)
        for index, (ids, prompt) in enumerate(past.rows):
            ids[past.lengths[index] :] = input_ids[index].tolist()
            prompt[:] = prompt or [len(ids)]
            past.lengths[index] = len(ids)
            assert len(ids) <= self.context_length
            for back, logits in enumerate(self._logits[index, ::-1]):
                logits[:] = self.logits(ids[: len(ids) - back], prompt[0])
        return self._logits

    def logits(self, ids: list[int], prompt_tokens: int) -> NDArray[np.float32]:
        """``[vocab_size]``, after ``ids``, of which so many were the prompt."""
        random = np.random.default_rng(zlib.crc32(np.array(ids).tobytes()))
        logits = (random.standard_normal(self.vocab_size) * 3).astype(np.float32)
        if step := self.script[len(ids) - prompt_tokens :][:1]:
            logits[step[0]] = 50
        return logits


class LoopingSession(FakeSession):
    """A text that soon repeats itself: logits follow from the last ``order`` tokens, and only some ids are likely."""

    def __init__(self, *, likely: int = 40, order: int = 2, noise: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self._likely, self._order, self._noise = likely, order, noise  # another noise is another model, a similar one

    def logits(self, ids: list[int], prompt_tokens: int) -> NDArray[np.float32]:
        seed = zlib.crc32(np.array(ids[-self._order :]).tobytes())
        logits = np.full(self.vocab_size, -20, np.float32)
        logits[300 : 300 + self._likely] = np.random.default_rng(seed).standard_normal(self._likely) * 3
        if self._noise:
            logits += np.random.default_rng((seed, self._noise)).standard_normal(self.vocab_size).astype(np.float32)
        if step := self.script[len(ids) - prompt_tokens :][:1]:
            logits[step[0]] = 50
        return logits


class GreedyFakeSession(FakeSession):
    """Runs ahead of its caller (a ``GreedySession``), and leaves behind in the past what nobody asked for."""

    ahead = 3

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.open_iterators = 0
        self.held_back: list[list[int]] = []  # lengths, each time the next step was asked for

    def greedy(self, input_ids: NDArray[np.int64], past: Past) -> Generator[NDArray[np.int64], None, None]:
        assert isinstance(past, FakePast) and input_ids.shape == (len(past.rows), 1)
        chosen: list[NDArray[np.int64]] = []
        ids = input_ids
        self.open_iterators += 1
        try:
            while True:
                self.held_back.append(past.lengths.tolist())
                while len(chosen) < self.ahead and past.lengths.max() + len(chosen) < self.context_length:
                    ahead = FakePast(past.rows, past.lengths + len(chosen))
                    ids = self.run("decode", ids, ahead).argmax(axis=-1)
                    chosen.append(ids[:, 0])
                if not chosen:
                    return
                token_ids = chosen.pop(0)
                past.lengths += 1
                yield token_ids
        finally:
            self.open_iterators -= 1


class ChunkedSession(FakeSession):
    """Keys, values and logits depend on how a text was split into calls, as kernels' rounding does: on each call's
    width, and in a prefill on where it lies between multiples of ``exact_split``.
    """

    exact_split = 8

    def run(self, phase: Phase, input_ids: NDArray[np.int64], past: Past) -> NDArray[np.float32]:
        assert isinstance(past, FakePast)
        if not past.rows[0][1]:  # the first call's tokens are the prompt, whatever their number of pieces
            past.rows[0][1].append(int(past.lengths[0]) + input_ids.shape[1])
        chunk = self.exact_split if phase == "prefill" else 1 << 20
        stops = range(chunk - int(past.lengths[0]) % chunk, input_ids.shape[1], chunk)
        for piece in np.split(input_ids, list(stops), axis=1):
            mark = (1 + piece.shape[1] + 1000 * (phase == "decode")) * self.vocab_size
            logits = super().run(phase, piece + mark, past)
        return logits
