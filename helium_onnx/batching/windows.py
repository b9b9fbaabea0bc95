"""Rows in windows, and windows in batches.

Which rows run together follows from the input and the options alone, not from where a job began again, on how many
workers it runs, or in which order they finish: kernels may round a row otherwise in another batch, and then a job that
was resumed would not give the rows of one that was not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from helium_onnx.batching.rows import Line


@dataclass(frozen=True)
class Limits:
    """How much runs together.

    A window ends at ``window_rows`` rows or ``window_bytes`` bytes of input. A batch has at most ``batch_rows`` rows,
    and ``batch_tokens`` tokens with each row counted as long as the longest; a longer row is a batch of its own.
    """

    window_rows: int
    window_bytes: int
    batch_rows: int
    batch_tokens: int


def windows(lines: Iterable[Line], limits: Limits) -> Iterator[list[Line]]:
    """Consecutive lines; a window is closed before the row that would pass its bytes."""
    window: list[Line] = []
    size = 0
    for line in lines:
        if window and (len(window) == limits.window_rows or size + len(line.data) > limits.window_bytes):
            yield window
            window, size = [], 0
        window.append(line)
        size += len(line.data)
    if window:
        yield window


def batches(tokens: Sequence[int], limits: Limits) -> list[list[int]]:
    """Indices of rows of these numbers of tokens, the longest first: what fits runs, and the rest is shorter still."""
    order = sorted(range(len(tokens)), key=lambda index: (-tokens[index], index))
    result: list[list[int]] = []
    for index in order:
        longest = tokens[result[-1][0]] if result else 0
        if not result or len(result[-1]) == limits.batch_rows or (len(result[-1]) + 1) * longest > limits.batch_tokens:
            result.append([])
        result[-1].append(index)
    return result
