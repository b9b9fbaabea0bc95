"""A CUDA driver without a GPU: the methods of ``CudaDriver`` over host memory. An address is one of the host's.

Streams run at once or, with ``lazy``, only when the host waits: a program that reads a result too early, or changes a
buffer that a copy still has to read, then computes with wrong numbers, as it would on a device.
"""

from __future__ import annotations

import ctypes
import math
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

from helium_onnx.kernels.build import compiler
from helium_onnx.runtimes.cuda_driver import DeviceInfo

_POISON = 0xA5


def libcuda(folder: Path) -> Path:
    """``folder`` with the libcuda.so.1 of fake_libcuda.c, for LD_LIBRARY_PATH: the real bindings over host memory."""
    if (cc := compiler()) is None:
        pytest.skip("there is no C++ compiler to build a libcuda with")
    target = folder / "libcuda.so.1"
    source = Path(__file__).with_name("fake_libcuda.c")
    subprocess.run([cc, "-x", "c", "-shared", "-fPIC", "-o", target, source, "-ldl"], check=True)
    return folder


class FakeCudaDriver:
    """Checks how it is called, and keeps the names of all calls in ``calls``.

    ``free_bytes`` and ``total_bytes`` may be set at any time. ``allocate`` gives device memory, ``enqueue`` puts any
    work (a fake session's step) on a stream, in the order of its copies.
    """

    def __init__(
        self,
        index: int = 0,
        *,
        lazy: bool = False,
        name: str = "NVIDIA Fake",
        compute_capability: tuple[int, int] = (9, 0),
        free_bytes: int = 79 << 30,
        total_bytes: int = 80 << 30,
        multiprocessors: int = 132,
    ) -> None:
        self.index, self.lazy, self.name, self.compute_capability = index, lazy, name, compute_capability
        self.free_bytes, self.total_bytes, self.multiprocessors = free_bytes, total_bytes, multiprocessors
        self.calls: list[str] = []
        self.closed = False
        self._next = 1
        self._pinned: list[NDArray[np.uint8]] = []
        self._memory: list[NDArray[np.uint8]] = []
        self._queues: dict[int, list[Callable[[], object]]] = {}
        self._events: dict[int, tuple[int, bool]] = {}  # the stream of the last record, and whether it was passed
        self._recorded: dict[int, int] = {}  # how often: only the last mark counts

    def info(self) -> DeviceInfo:
        free, total = self.memory()
        return DeviceInfo(self.index, self.name, self.compute_capability, total, free, self.multiprocessors)

    def memory(self) -> tuple[int, int]:
        self._called("memory")
        return self.free_bytes, self.total_bytes

    def make_current(self) -> None:
        self._called("make_current")

    def close(self) -> None:
        """Runs what is queued; what was pinned is overwritten, so that a late reader finds out."""
        if self.closed:
            return
        for stream in self._queues:
            self._run(stream)
        for memory in self._pinned:
            memory[:] = _POISON
        self.calls.append("close")
        self.closed = True

    def new_stream(self) -> int:
        self._called("new_stream")
        stream = self._handle()
        self._queues[stream] = []
        return stream

    def destroy_stream(self, stream: int) -> None:
        self._called("destroy_stream")
        self._run(stream)
        del self._queues[stream]

    def synchronize(self, stream: int) -> None:
        self._called("synchronize")
        self._run(stream)

    def new_event(self) -> int:
        self._called("new_event")
        event = self._handle()
        self._events[event], self._recorded[event] = (0, True), 0
        return event

    def record(self, event: int, stream: int) -> None:
        self._called("record")
        assert event in self._events, "no such event"
        self._recorded[event] += 1
        mark = self._recorded[event]
        self._events[event] = (stream, False)

        def passed() -> None:
            if self._recorded.get(event) == mark:
                self._events[event] = (stream, True)

        self.enqueue(stream, passed)

    def wait(self, event: int) -> None:
        self._called("wait")
        stream, passed = self._events[event]
        while not passed:
            self._queues[stream].pop(0)()
            stream, passed = self._events[event]

    def done(self, event: int) -> bool:
        self._called("done")
        return self._events[event][1]

    def destroy_event(self, event: int) -> None:
        self._called("destroy_event")
        del self._events[event], self._recorded[event]

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        self._called("pinned")
        kind, count = np.dtype(dtype), math.prod(shape)
        memory = np.zeros(max(1, count * kind.itemsize), np.uint8)
        self._pinned.append(memory)
        return memory[: count * kind.itemsize].view(kind).reshape(shape)

    def to_device(self, address: int, array: NDArray[Any], stream: int | None = None) -> None:
        self._called("to_device")
        self._copy(address, array.ctypes.data, array, stream)

    def from_device(self, array: NDArray[Any], address: int, stream: int | None = None) -> None:
        self._called("from_device")
        assert array.flags.writeable
        self._copy(array.ctypes.data, address, array, stream)

    def rows_to_device(self, address: int, pitch: int, array: NDArray[np.uint8]) -> None:
        self._called("rows_to_device")
        self._check_rows(array, pitch)
        for index, row in enumerate(array):
            ctypes.memmove(address + index * pitch, row.ctypes.data, row.nbytes)

    def rows_from_device(self, array: NDArray[np.uint8], address: int, pitch: int) -> None:
        self._called("rows_from_device")
        assert array.flags.writeable
        self._check_rows(array, pitch)
        for index, row in enumerate(array):
            ctypes.memmove(row.ctypes.data, address + index * pitch, row.nbytes)

    # What a test has beside them

    def allocate(self, size: int) -> int:
        """The address of so many bytes of the device, which hold no zeros at first."""
        memory = np.full(max(1, size), _POISON, np.uint8)
        self._memory.append(memory)
        return int(memory.ctypes.data)

    def enqueue(self, stream: int, work: Callable[[], object]) -> None:
        """Do ``work`` when the stream is there: now, or with ``lazy`` when the host waits for it."""
        assert stream in self._queues, "no such stream"
        self._queues[stream].append(work)
        if not self.lazy:
            self._run(stream)

    def waiting(self, stream: int) -> int:
        """How many pieces of work the stream has before it."""
        return len(self._queues[stream])

    def _called(self, name: str) -> None:
        assert not self.closed, f"{name} after close"
        self.calls.append(name)

    def _handle(self) -> int:
        self._next += 1
        return self._next - 1

    def _run(self, stream: int) -> None:
        assert stream in self._queues, "no such stream"
        queue = self._queues[stream]
        while queue:
            queue.pop(0)()

    def _copy(self, target: int, source: int, array: NDArray[Any], stream: int | None) -> None:
        assert array.flags.c_contiguous
        if stream is None:  # beside what the streams still have to do, as on a device
            ctypes.memmove(target, source, array.nbytes)
            return
        assert self._is_pinned(array), "an asynchronous copy needs an array of pinned()"
        size = array.nbytes
        self.enqueue(stream, lambda: ctypes.memmove(target, source, size))

    def _is_pinned(self, array: NDArray[Any]) -> bool:
        return any(np.shares_memory(memory, array) for memory in self._pinned) or not array.size

    def _check_rows(self, array: NDArray[np.uint8], pitch: int) -> None:
        rows, width = array.shape
        assert array.dtype == np.uint8 and (width <= 1 or array.strides[1] == 1)
        assert width <= pitch and (rows <= 1 or width <= array.strides[0])
