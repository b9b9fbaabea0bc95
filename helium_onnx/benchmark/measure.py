"""Rounds of measurements over one session, through the seam alone (runtimes/session.py)."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from helium_onnx.benchmark.cases import Case, Decode, LeftOut, Prefill
from helium_onnx.errors import ResourceError
from helium_onnx.progress import ProgressCallback, ProgressEvent
from helium_onnx.runtimes.session import Past, Session

SEED = 0
_FILL = 128  # tokens whose keys and values a past is filled with, over and over

Samples = dict[Case, list[float]]


def measure_rounds(
    session: Session, cases: Sequence[Case], *, rounds: int, steps: int, progress: ProgressCallback,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Samples, tuple[LeftOut, ...]]:  # fmt: skip
    """Seconds of each prefill and each decode step, in ``rounds`` after one that is not counted.

    A round measures every case once, in an order that is shuffled anew each time (from a fixed seed): what disturbs
    the machine for a while then falls on all cases alike. A case for whose keys and values there is no memory is left
    out, and returned beside the samples.
    """
    meter = Meter(session, steps, clock)
    samples: Samples = {}
    left_out = []
    for case in cases:
        progress(ProgressEvent("measure", f"warming up: {case}"))
        try:
            meter.measure(case)
        except ResourceError as error:
            left_out.append(LeftOut(str(case), f"{error.what}: {error.found}"))
        else:
            samples[case] = []
    order, shuffle = list(samples), random.Random(SEED).shuffle
    began = clock()
    for index in range(rounds):
        took = f", about {(clock() - began) / index:.0f} s each" if index else ""
        progress(ProgressEvent("measure", f"round {index + 1} of {rounds}{took}"))
        shuffle(order)
        for case in order:
            samples[case] += meter.measure(case)
    return samples, tuple(left_out)


class Meter:
    """Measures single cases of one session. ``steps`` are those of one visit to a decode case."""

    def __init__(self, session: Session, steps: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._session, self._steps, self._clock = session, steps, clock
        self._random = np.random.default_rng(SEED)

    def measure(self, case: Case) -> list[float]:
        """Seconds: of the prefill, or of each step."""
        return [self._prefill(case)] if isinstance(case, Prefill) else self._decode(case)

    def _prefill(self, case: Prefill) -> float:
        """From token ids to the first new token."""
        past, ids = self._session.new_past(1), self._ids(1, case.tokens)
        start = self._clock()
        _choose(self._session.run("prefill", ids, past))
        return self._clock() - start

    def _decode(self, case: Decode) -> list[float]:
        """Each from a token to the next, the tokens following each other as in a greedy generation."""
        # One step before them is not counted: it binds the buffers and fetches what other cases pushed out of caches.
        past = self.place(case.batch, max(0, case.past - 1))
        ids = _choose(self._session.run("decode", self._ids(case.batch, 1), past))
        past.lengths[:] = case.past
        seconds = []
        for _ in range(self._steps):
            start = self._clock()
            ids = _choose(self._session.run("decode", ids, past))
            seconds.append(self._clock() - start)
        return seconds

    def place(self, rows: int, length: int) -> Past:
        """A past of ``rows`` rows that hold ``length`` tokens each, most of which were never computed.

        What the tokens are changes no timing, but that they are there does: pages of memory that nobody has written
        are all one page of zeros, which the caches hold (measured on a 2 B model at past 2048: a fifth of the step).
        So the keys and values of a few tokens are written, over and over, unless an earlier call has left some in the
        same buffers.
        """
        past = self._session.new_past(rows)
        few: list[NDArray[np.generic]] = []
        for index in range(rows) if length else ():
            row = past.row(index)
            if _holds(row, length):
                continue
            row.lengths[:] = 0
            if not few:
                count = min(length, _FILL)
                self._session.run("prefill", self._ids(1, count), row)
                few = row.read_slots(0, count)
            while (missing := length - int(row.lengths[0])) > 0:
                row.write_slots([tensor[:, :missing] for tensor in few])
        past.lengths[:] = length
        return past

    def _ids(self, rows: int, tokens: int) -> NDArray[np.int64]:
        return self._random.integers(0, self._session.vocab_size, (rows, tokens))


def _choose(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """The likeliest token of each row, as the next call takes it: ``[rows, 1]``."""
    chosen: NDArray[np.int64] = logits[:, -1].argmax(axis=-1)[:, None].astype(np.int64, copy=False)
    return chosen


def _holds(row: Past, length: int) -> bool:
    """Whether something was written into the slot of the last of ``length`` tokens."""
    row.lengths[:] = length
    last = row.read_slots(length - 1, length)
    return all(tensor.shape[1] == 1 for tensor in last) and any(bool(tensor.any()) for tensor in last)
