"""Which rows are written: each one once, whatever comes late or twice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from helium_onnx.batching.output import Sink
from helium_onnx.batching.rows import Line
from helium_onnx.batching.survey import Survey
from helium_onnx.batching.work import Done


@dataclass
class Written:
    """Which rows are there: the first ``first`` of them, or (``ordered`` False) those of the lines in ``lines``."""

    survey: Survey
    ordered: bool
    first: int
    lines: bytearray

    def is_wanted(self, line: Line) -> bool:
        """Whether the row is still to be written."""
        return line.row >= self.first if self.ordered else not self.lines[line.number]


class RowWriter:
    """Writes each row once: in order, holding back those that came too early, or as they come."""

    def __init__(self, sink: Sink, state: Written) -> None:
        self.count = 0
        self._sink, self._state = sink, state
        self._next = state.first
        self._early: dict[int, Done] = {}

    def put(self, rows: Iterable[Done]) -> int:
        """Take rows, of which any may have come before; returns how many of the new ones are bad."""
        if self._state.ordered:
            new = [row for row in rows if row.row >= self._next and row.row not in self._early]
            self._early.update((row.row, row) for row in new)
            ready: list[Done] = []
            while self._next in self._early:
                ready.append(self._early.pop(self._next))
                self._next += 1
        else:
            ready = new = [row for row in rows if not self._state.lines[row.line]]
            for row in new:
                self._state.lines[row.line] = 1
        if ready:
            self._sink.write(row.data for row in ready)
        self.count += len(ready)
        return sum(row.bad for row in new)
