"""Keys and values of a CudaSession: buffers on the device that the graphs write in place."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from helium_onnx.contract import TensorSpec
from helium_onnx.runtimes.cuda_device import Device
from helium_onnx.runtimes.device_tensors import ELEMENT_TYPES, DeviceTensor, tensor_bytes


class DeviceCache:
    """One buffer ``[rows, kv_heads, context_length, head_dim]`` for each key and value tensor of the contract.

    And what a step reads and writes beside them, for as many rows: ``input_ids`` int64 ``[rows, 1]``, which its own
    ``next_token_ids`` overwrite, ``seqlens_k`` int32 ``[rows]`` and ``logits`` float32 ``[rows, 1, vocab_size]``.
    """

    def __init__(
        self, device: Device, specs: tuple[TensorSpec, ...], context_length: int, vocab_size: int, rows: int
    ) -> None:
        """Raises ResourceError."""
        self.device, self.rows, self.context_length = device, rows, context_length
        self._addresses: list[int] = []
        try:
            self.tensors = tuple(
                self._allocate(spec.dtype, rows, int(spec.dims[1]), context_length, int(spec.dims[3])) for spec in specs
            )
            self.input_ids = self._allocate("int64", rows, 1)
            self.seqlens_k = self._allocate("int32", rows)
            self.logits = self._allocate("float32", rows, 1, vocab_size)
        except BaseException:
            self.free()
            raise

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.tensors, self.input_ids, self.seqlens_k, self.logits))

    def free(self) -> None:
        """Give the memory back: what was captured over it is void. Nothing may be running."""
        while self._addresses:
            self.device.free(self._addresses.pop())

    def _allocate(self, dtype: str, *shape: int) -> DeviceTensor:
        address = self.device.allocate(tensor_bytes(dtype, shape))
        self._addresses.append(address)
        return DeviceTensor(address, dtype, shape)


class DevicePast:
    """Rows of a :class:`DeviceCache`, from ``first`` on (a ``Past`` of the seam)."""

    def __init__(self, cache: DeviceCache, first: int, lengths: NDArray[np.int64]) -> None:
        self.cache, self.first, self.lengths = cache, first, lengths

    def row(self, index: int) -> DevicePast:
        return DevicePast(self.cache, self.first + index, self.lengths[index : index + 1])

    def read_slots(self, start: int, stop: int) -> list[NDArray[Any]]:
        """See ``Past``; bfloat16 comes as its bytes, in uint16."""
        assert len(self.lengths) == 1 and stop <= self.lengths[0]
        read = []
        for tensor in self._tensors():  # whose slots are computed: lengths only count what the host has waited for
            heads, head_dim = tensor.shape[1], tensor.shape[3]
            kind = ELEMENT_TYPES[tensor.dtype]
            slots = np.empty((heads, stop - start, head_dim), kind.numpy)
            if slots.size:
                rows = slots.view(np.uint8).reshape(heads, -1)
                self.cache.device.driver.rows_from_device(rows, *_place(tensor, start))
            read.append(slots)
        return read

    def write_slots(self, tensors: list[NDArray[Any]]) -> None:
        assert len(self.lengths) == 1
        start, count = int(self.lengths[0]), tensors[0].shape[1]
        assert start + count <= self.cache.context_length
        if count:
            for tensor, slots in zip(self._tensors(), tensors, strict=True):
                assert slots.dtype == ELEMENT_TYPES[tensor.dtype].numpy
                rows = np.ascontiguousarray(slots).view(np.uint8).reshape(len(slots), -1)
                self.cache.device.driver.rows_to_device(*_place(tensor, start), rows)
        self.lengths[0] += count

    def _tensors(self) -> list[DeviceTensor]:
        return [tensor.rows(self.first, 1) for tensor in self.cache.tensors]


def _place(tensor: DeviceTensor, slot: int) -> tuple[int, int]:
    """Where ``slot`` of the first head is, and how far it is from there to that of the next head, in bytes."""
    row = tensor_bytes(tensor.dtype, tensor.shape[3:])
    return tensor.address + slot * row, tensor.shape[2] * row
