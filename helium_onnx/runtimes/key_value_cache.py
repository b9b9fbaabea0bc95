"""Keys and values of a session, in one of two forms: buffers that the graph writes in place, or growing tensors."""

from __future__ import annotations

import contextlib
import math
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helium_onnx.contract import TensorSpec


class InPlaceCache:
    """One buffer ``[rows, kv_heads, context_length, head_dim]`` for each key and value tensor of the contract.

    The graph takes it as past and gives it as present: nothing is copied. Pages that no token has reached are never
    touched, so a long context costs address space, not memory, until it is used.
    """

    def __init__(self, specs: tuple[TensorSpec, ...], context_length: int) -> None:
        self._specs, self._context_length = specs, context_length
        self._buffers: list[NDArray[Any]] = []

    def buffers(self, rows: int) -> list[NDArray[Any]]:
        """The buffers' first ``rows`` rows; memory grows with the largest batch asked for, and is then kept."""
        if not self._buffers or len(self._buffers[0]) < rows:
            self._buffers = []  # the old ones first: both at once would double the peak
            self._buffers = [
                _zeros((rows, int(s.dims[1]), self._context_length, int(s.dims[3])), np.dtype(s.dtype))
                for s in self._specs
            ]
        return [buffer[:rows] for buffer in self._buffers]


class InPlacePast:
    """Some rows of an :class:`InPlaceCache` (a ``Past`` of the seam)."""

    def __init__(self, buffers: list[NDArray[Any]], lengths: NDArray[np.int64]) -> None:
        self.buffers, self.lengths = buffers, lengths
        self.bindings: dict[Any, Any] = {}  # of each kind of call, made by the session that runs this past

    def row(self, index: int) -> InPlacePast:
        return InPlacePast([b[index : index + 1] for b in self.buffers], self.lengths[index : index + 1])

    def read_slots(self, start: int, stop: int) -> list[NDArray[Any]]:
        assert len(self.lengths) == 1 and stop <= self.lengths[0]
        return [buffer[0, :, start:stop].copy() for buffer in self.buffers]

    def write_slots(self, tensors: list[NDArray[Any]]) -> None:
        assert len(self.lengths) == 1
        start = int(self.lengths[0])
        for buffer, tensor in zip(self.buffers, tensors, strict=True):
            buffer[0, :, start : start + tensor.shape[1]] = tensor
        self.lengths[0] += tensors[0].shape[1]


class GrowingPast:
    """Rows whose keys and values are the last call's outputs (a ``Past`` of the seam), one list of tensors a row.

    For graphs that concatenate past and present: each step makes tensors one token longer.
    """

    def __init__(self, tensors: list[list[NDArray[Any]]], lengths: NDArray[np.int64]) -> None:
        self.tensors, self.lengths = tensors, lengths

    @classmethod
    def empty(cls, specs: tuple[TensorSpec, ...], rows: int) -> GrowingPast:
        zero = [np.zeros((1, int(s.dims[1]), 0, int(s.dims[3])), np.dtype(s.dtype)) for s in specs]
        return cls([list(zero) for _ in range(rows)], np.zeros(rows, np.int64))

    def row(self, index: int) -> GrowingPast:
        return GrowingPast(self.tensors[index : index + 1], self.lengths[index : index + 1])

    def read_slots(self, start: int, stop: int) -> list[NDArray[Any]]:
        assert len(self.lengths) == 1 and stop <= self.lengths[0]
        return [tensor[0, :, start:stop].copy() for tensor in self.tensors[0]]

    def write_slots(self, tensors: list[NDArray[Any]]) -> None:
        assert len(self.lengths) == 1
        held = (tensor[:, :, : self.lengths[0]] for tensor in self.tensors[0])
        # Into the list itself, which a past of several rows shares with its row.
        self.tensors[0][:] = [np.concatenate([old, new[None]], axis=2) for old, new in zip(held, tensors, strict=True)]
        self.lengths[0] += tensors[0].shape[1]


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Zeros that take memory page by page, as they are written. Raises MemoryError.

    ``np.zeros`` asks Linux for huge pages, and one of 2 MB is a whole head's 4096 tokens: the first 16 tokens of the
    2 B model then took 1.9 of its buffers' 2.0 GB (measured), and so take 12 MB.
    """
    if not hasattr(mmap, "MADV_NOHUGEPAGE"):  # not Linux
        return np.zeros(shape, dtype)
    try:
        memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(str(error)) from error
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)
