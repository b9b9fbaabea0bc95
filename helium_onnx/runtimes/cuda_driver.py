"""One CUDA device: memory, streams, events and copies, over the CUDA driver's own functions.

ONNX Runtime computes on the same device and in the same (primary) context: an address or a stream of the one is one
of the other. Addresses, streams and events are plain ints. ``tests/fake_cuda.py`` has the same methods over host
memory.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from helium_onnx.errors import ProviderError
from helium_onnx.runtimes.cuda_probe import (
    CudaReport,
    DeviceInfo,
    ask,
    ask_whether,
    check_device,
    check_driver,
    count_devices,
    describe,
    probe,
    start,
)

__all__ = ["CudaDriver", "CudaReport", "DeviceInfo", "probe"]


class CudaDriver:
    """Device ``index``, as CUDA numbers them. ``close`` frees pinned memory, streams and events that are left.

    Any thread may call any method: each makes the device's context current on its thread first.

    Copies do not wait for other streams: what a stream computes is copied on that stream, or after ``synchronize``. A
    copy without ``stream`` is complete when the method returns.

    Raises:
        ProviderError: there is no driver, it is too old, there is no such device, or it lets nobody in; and from any
            method when the device fails.
    """

    def __init__(self, index: int = 0) -> None:
        cuda, version = start()
        check_driver(version)
        count = count_devices(cuda)
        if not 0 <= index < count:
            raise ProviderError(
                f"there is no GPU {index}",
                found=f"{count} {'GPU' if count == 1 else 'GPUs'}",
                expected=f"a number from 0 to {count - 1}",
                remedy="nvidia-smi -L lists them; CUDA_VISIBLE_DEVICES can hide some",
            )
        self._cuda = cuda
        self._index = index
        check_device(describe(cuda, index))
        self._device = ask(cuda, "cuDeviceGet", index)
        self._context = ask(cuda, "cuDevicePrimaryCtxRetain", self._device)
        self._pinned: list[int] = []
        self._streams: set[int] = set()
        self._events: set[int] = set()
        # Copies that the host waits for have a stream of their own: on the default stream they would wait for others,
        # and one from pageable memory can return before its last bytes are on the device.
        self._copies = self.new_stream()

    def info(self) -> DeviceInfo:
        """The device's row, with what is free now."""
        return replace(describe(self._cuda, self._index), free_bytes=self.memory()[0])

    def memory(self) -> tuple[int, int]:
        """Bytes of the device's memory: free now, for any process, and in all."""
        free, total = self._ask("cuMemGetInfo")
        return int(free), int(total)

    def make_current(self) -> None:
        """Make the device's context current on the calling thread, for libraries that ask for no device."""
        assert self._context is not None, "the driver is closed"
        ask(self._cuda, "cuCtxSetCurrent", self._context)

    def close(self) -> None:
        """Free what this object holds: arrays of ``pinned`` are gone with it. A second call does nothing."""
        context, self._context = self._context, None
        if context is None:
            return
        cuda = self._cuda
        calls: list[tuple[str, Any]] = [("cuCtxSetCurrent", context)]
        calls += [("cuStreamSynchronize", stream) for stream in self._streams]  # nothing may write what is freed next
        calls += [("cuEventDestroy", event) for event in self._events]
        calls += [("cuStreamDestroy", stream) for stream in self._streams]
        calls += [("cuMemFreeHost", address) for address in self._pinned]
        calls += [("cuDevicePrimaryCtxRelease", self._device)]
        for function, argument in calls:
            with suppress(ProviderError):  # after a failure of the device every call fails
                ask(cuda, function, argument)
        self._pinned, self._streams, self._events = [], set(), set()

    def new_stream(self) -> int:
        """A stream that waits for no other, the default stream included."""
        stream = int(self._ask("cuStreamCreate", self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING))
        self._streams.add(stream)
        return stream

    def destroy_stream(self, stream: int) -> None:
        """Let go of it; what it was given is still done."""
        self._streams.discard(stream)
        self._ask("cuStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        """Return when all that the stream was given is done; other threads run meanwhile."""
        self._ask("cuStreamSynchronize", stream)

    def new_event(self) -> int:
        """A mark that ``record`` puts behind what a stream was given so far."""
        event = int(self._ask("cuEventCreate", self._cuda.CUevent_flags.CU_EVENT_DISABLE_TIMING))
        self._events.add(event)
        return event

    def record(self, event: int, stream: int) -> None:
        """Put the event behind what the stream was given so far, in place of where it was recorded before."""
        self._ask("cuEventRecord", event, stream)

    def wait(self, event: int) -> None:
        """Return when what stands before the event is done; other threads run meanwhile."""
        self._ask("cuEventSynchronize", event)

    def done(self, event: int) -> bool:
        """Whether what stands before the event is done."""
        self.make_current()
        return ask_whether(self._cuda, "cuEventQuery", event)

    def destroy_event(self, event: int) -> None:
        """Let go of it."""
        self._events.discard(event)
        self._ask("cuEventDestroy", event)

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """An array of zeros in page-locked host memory, from and to which copies run beside the host's work.

        It must not be touched after ``close``.
        """
        kind, count = np.dtype(dtype), math.prod(shape)
        size = max(1, count * kind.itemsize)
        address = int(self._ask("cuMemHostAlloc", size, self._cuda.CU_MEMHOSTALLOC_PORTABLE))
        self._pinned.append(address)
        ctypes.memset(address, 0, size)
        memory = (ctypes.c_uint8 * size).from_address(address)
        return np.frombuffer(memoryview(memory), kind, count).reshape(shape)

    def to_device(self, address: int, array: NDArray[Any], stream: int | None = None) -> None:
        """Copy a contiguous array to the device.

        On ``stream`` the copy only begins, in that stream's order: the array is one of ``pinned``, and must stay as it
        is until the stream is there. Without a stream the copy is complete on return.
        """
        assert array.flags.c_contiguous
        if array.nbytes:
            self._copy("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, stream)

    def from_device(self, array: NDArray[Any], address: int, stream: int | None = None) -> None:
        """Copy from the device into a contiguous array; ``stream`` as for ``to_device``."""
        assert array.flags.c_contiguous and array.flags.writeable
        if array.nbytes:
            self._copy("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, stream)

    def rows_to_device(self, address: int, pitch: int, array: NDArray[np.uint8]) -> None:
        """Copy ``array`` [rows, bytes] to rows that begin ``pitch`` bytes apart on the device; complete on return."""
        self._copy_rows(array, address, pitch, to_device=True)

    def rows_from_device(self, array: NDArray[np.uint8], address: int, pitch: int) -> None:
        """Copy rows that begin ``pitch`` bytes apart on the device into ``array`` [rows, bytes]; complete on return."""
        assert array.flags.writeable
        self._copy_rows(array, address, pitch, to_device=False)

    def _ask(self, function: str, *arguments: object) -> Any:
        self.make_current()
        return ask(self._cuda, function, *arguments)

    def _copy(self, function: str, target: int, source: int, size: int, stream: int | None) -> None:
        self._ask(function, target, source, size, self._copies if stream is None else stream)
        if stream is None:
            ask(self._cuda, "cuStreamSynchronize", self._copies)

    def _copy_rows(self, array: NDArray[np.uint8], address: int, pitch: int, *, to_device: bool) -> None:
        rows, width = array.shape
        host_pitch = array.strides[0] if rows > 1 else width
        assert array.dtype == np.uint8 and (width <= 1 or array.strides[1] == 1)
        assert width <= min(pitch, host_pitch)
        if not array.size:
            return
        copy = self._cuda.CUDA_MEMCPY2D()
        host, device = ("src", "dst") if to_device else ("dst", "src")
        for name, value in {
            f"{host}MemoryType": self._cuda.CUmemorytype.CU_MEMORYTYPE_HOST,
            f"{host}Host": array.ctypes.data,
            f"{host}Pitch": host_pitch,
            f"{device}MemoryType": self._cuda.CUmemorytype.CU_MEMORYTYPE_DEVICE,
            f"{device}Device": address,
            f"{device}Pitch": pitch,
            "WidthInBytes": width,
            "Height": rows,
        }.items():
            setattr(copy, name, value)
        self._ask("cuMemcpy2DAsync", copy, self._copies)
        ask(self._cuda, "cuStreamSynchronize", self._copies)
