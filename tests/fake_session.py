"""A session of forty lines: deterministic, checks how it is called, and records it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

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
        return [np.array(self.rows[0][0][start:stop]).reshape(1, -1, 1)]

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
        assert input_ids.dtype == np.int64
        assert input_ids.shape[0] == len(past.rows)
        assert input_ids.shape[0 if phase == "prefill" else 1] == 1
        if self.interrupt_at == len(self.calls) - 1:
            raise KeyboardInterrupt
        self._logits = np.empty((len(past.rows), 1, self.vocab_size), dtype=np.float32)
        for index, (ids, prompt) in enumerate(past.rows):
            ids[past.lengths[index] :] = input_ids[index].tolist()
            prompt[:] = prompt or [len(ids)]
            past.lengths[index] = len(ids)
            assert len(ids) <= self.context_length
            random = np.random.default_rng(zlib.crc32(np.array(ids).tobytes()))
            self._logits[index, 0] = random.standard_normal(self.vocab_size) * 3
            if step := self.script[len(ids) - prompt[0] :][:1]:
                self._logits[index, 0, step[0]] = 50
        return self._logits
