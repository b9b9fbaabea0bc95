"""Which texts run together: those of like length, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from helium_onnx.errors import UsageError


def by_length(lengths: Sequence[int], batch_tokens: int, rows: int | None = None) -> Iterator[list[int]]:
    """Places in ``lengths``, batch by batch, the longest first (memory runs out at once or not at all).

    A batch is padded to its longest row; it has at most ``batch_tokens`` tokens with its padding (or one row), and at
    most ``rows`` rows. Raises UsageError where ``batch_tokens`` is below 1.
    """
    if batch_tokens < 1:
        raise UsageError("batch_tokens is out of range", found=batch_tokens, expected="at least 1")
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        longest = lengths[batch[0]] if batch else 0
        if batch and ((len(batch) + 1) * longest > batch_tokens or len(batch) == rows):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def padded(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``input_ids`` and ``attention_mask`` of ``rows``, int64 ``[rows, longest]`` each, padded on the right."""
    longest = max(map(len, rows))
    input_ids = np.full((len(rows), longest), pad_token_id, np.int64)
    attention_mask = np.zeros((len(rows), longest), np.int64)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = row
        attention_mask[i, : len(row)] = 1
    return input_ids, attention_mask
