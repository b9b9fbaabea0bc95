"""The weights of a bundle on a device, once, for all the sessions over its graphs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnxruntime as ort

from helium_onnx.bundle import Bundle
from helium_onnx.contract import WEIGHTS_FILE
from helium_onnx.errors import BundleError
from helium_onnx.manifest import TensorRecord
from helium_onnx.progress import ProgressCallback, ProgressEvent
from helium_onnx.runtimes.cuda_device import Device
from helium_onnx.runtimes.device_tensors import DeviceTensor, ort_value
from helium_onnx.runtimes.graph_initializers import stored_initializers

#: Bytes at whose multiples tensors begin, as those of cudaMalloc do.
_ALIGNMENT = 256


def used_tensors(bundle: Bundle, graphs: Iterable[str]) -> tuple[TensorRecord, ...]:
    """The stored tensors that any of the graphs reads, each once. Raises BundleError."""
    used = {stored.record.offset: stored.record for graph in graphs for stored in stored_initializers(bundle, graph)}
    return tuple(used[offset] for offset in sorted(used))


def weights_bytes(records: Iterable[TensorRecord]) -> int:
    """What they take on a device."""
    return sum(_aligned(record.nbytes) for record in records)


class DeviceWeights:
    """All tensors of the weights file that ``graphs`` read, in one piece of device memory.

    Raises:
        BundleError: the files do not fit together, or cannot be read.
        ResourceError: the device has too little memory.
    """

    def __init__(self, bundle: Bundle, graphs: Iterable[str], device: Device, progress: ProgressCallback) -> None:
        self._bundle, self._device = bundle, device
        records = used_tensors(bundle, graphs)
        total = weights_bytes(records)
        self._address = device.allocate(total)
        self._places: dict[int, int] = {}
        self._values: list[ort.OrtValue] = []  # sessions hold them by their addresses
        try:
            # Mapped: pages go from the file to the device, and no copy stays in the host's memory.
            file = np.memmap(bundle.path / WEIGHTS_FILE, np.uint8, mode="r")
            done = 0
            for record in records:
                self._places[record.offset] = self._address + done
                device.driver.to_device(self._address + done, file[record.offset : record.offset + record.nbytes])
                done += _aligned(record.nbytes)
                progress(ProgressEvent("weights", record.name, done, total))
        except OSError as error:
            self.free()
            raise BundleError(f"{bundle.path / WEIGHTS_FILE} cannot be read", found=error) from error
        except BaseException:
            self.free()
            raise

    def add_to(self, options: ort.SessionOptions, graph: str) -> None:
        """Let a session over ``graph`` read its weights where they are."""
        for stored in stored_initializers(self._bundle, graph):
            tensor = DeviceTensor(self._places[stored.record.offset], stored.dtype, stored.shape)
            self._values.append(ort_value(tensor, self._device.kind, self._device.index))
            options.add_initializer(stored.name, self._values[-1])

    def free(self) -> None:
        """Give the memory back. No session over it may be left."""
        self._device.free(self._address)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
