"""Working memory of a CudaSession that grows with what is asked of it, on the device and page-locked on the host."""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import NDArray

from helium_onnx.runtimes.cuda_device import Device
from helium_onnx.runtimes.device_tensors import ELEMENT_TYPES, DeviceTensor, tensor_bytes


class DeviceBuffers:
    """Tensors on the device, one for each use; what was in one is gone when it grows. Nothing may be running then."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._held: dict[str, tuple[int, int]] = {}  # address, bytes

    def get(self, use: str, dtype: str, *shape: int) -> DeviceTensor:
        """Raises ResourceError."""
        needed = tensor_bytes(dtype, shape)
        address, held = self._held.get(use, (0, 0))
        if held < needed:
            self._release(use)
            address = self._device.allocate(needed)
            self._held[use] = address, needed
        return DeviceTensor(address, dtype, shape)

    def free(self) -> None:
        for use in list(self._held):
            self._release(use)

    def _release(self, use: str) -> None:
        if use in self._held:
            self._device.free(self._held.pop(use)[0])


class HostBuffers:
    """Page-locked arrays, one for each use. What is outgrown is given back when the driver is closed."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._held: dict[str, NDArray[Any]] = {}

    def get(self, use: str, dtype: str, *shape: int) -> NDArray[Any]:
        """A contiguous array of this shape, at the address of the last one where it fits there."""
        count = math.prod(shape)
        flat = self._held.get(use)
        if flat is None or flat.size < count:
            size = count if flat is None else max(count, 2 * flat.size)  # so that all outgrown ones are no more than it
            flat = self._held[use] = self._device.driver.pinned((size,), ELEMENT_TYPES[dtype].numpy)
        return flat[:count].reshape(shape)
