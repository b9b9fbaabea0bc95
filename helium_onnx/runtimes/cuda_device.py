"""The device that a CudaSession runs on: its memory, its stream, and sessions of ONNX Runtime over both.

A seam: tests put one over host memory and ONNX Runtime's CPU provider in its place (tests/runtimes/host_device.py).
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import onnxruntime as ort
from numpy.typing import DTypeLike, NDArray

from helium_onnx.bundle import Bundle
from helium_onnx.errors import HeliumOnnxError, ProviderError, ResourceError
from helium_onnx.runtimes.checked_files import default_cache_dir
from helium_onnx.runtimes.cuda_driver import CudaDriver, DeviceInfo
from helium_onnx.runtimes.cuda_libraries import check_libraries
from helium_onnx.runtimes.cuda_probe import ask, start
from helium_onnx.runtimes.graph_loading import is_out_of_memory, load_graph
from helium_onnx.runtimes.providers import CUDA, ExecutionProvider


class Driver(Protocol):
    """The methods of CudaDriver that a session needs; see there."""

    def info(self) -> DeviceInfo: ...
    def memory(self) -> tuple[int, int]: ...
    def close(self) -> None: ...
    def new_stream(self) -> int: ...
    def synchronize(self, stream: int) -> None: ...
    def new_event(self) -> int: ...
    def record(self, event: int, stream: int) -> None: ...
    def wait(self, event: int) -> None: ...
    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]: ...
    def to_device(self, address: int, array: NDArray[Any], stream: int | None = None) -> None: ...
    def from_device(self, array: NDArray[Any], address: int, stream: int | None = None) -> None: ...
    def rows_to_device(self, address: int, pitch: int, array: NDArray[Any]) -> None: ...
    def rows_from_device(self, array: NDArray[Any], address: int, pitch: int) -> None: ...


class NativeKernels(NamedTuple):
    """Our own CUDA operators: the library for ONNX Runtime, and the most rows that they decode together. Of quantized
    matrices these are more.
    """

    library: Path
    max_rows: int


class Device(Protocol):
    """What a CudaSession asks of its device. ``kind`` and ``index`` are ONNX Runtime's: ``cuda``, 0.

    ``row`` is the provider that sessions are loaded for.
    """

    @property
    def driver(self) -> Driver: ...
    @property
    def row(self) -> ExecutionProvider: ...
    @property
    def stream(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def index(self) -> int: ...

    def allocate(self, nbytes: int) -> int:
        """The address of so many bytes, which are zeros. Raises ResourceError."""
        ...

    def free(self, address: int) -> None:
        """Give back what ``allocate`` gave; nothing may be using it any more."""
        ...

    def kernels(self, cache_dir: Path | None, *, quantized: bool) -> NativeKernels | None:
        """Our own operators for this device, compiled when they are first asked for; None where they cannot be had."""
        ...

    def kernels_problem(self) -> str | None:
        """Why ``kernels`` gave None."""
        ...

    def load(self, options: ort.SessionOptions, bundle: Bundle, graph: str, *, captures: bool) -> ort.InferenceSession:
        """A session over a graph of the bundle that computes on ``stream``; see ``load_graph`` for what it raises.

        ``captures``: its runs become CUDA graphs.
        """
        ...

    def close(self) -> None: ...


class CudaDevice:
    """A GPU. ``index`` is CUDA's number of it.

    Raises:
        ProviderError: there is no driver, no device or no provider for it, or a library is missing; it says which.
    """

    kind = CUDA.name

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self.driver = CudaDriver(index)
        try:
            check_libraries()
            self.row: ExecutionProvider = CUDA
            self.stream = self.driver.new_stream()
            self._cuda, _ = start()
        except BaseException:
            self.driver.close()
            raise

    def allocate(self, nbytes: int) -> int:
        """See ``Device``. Memory of the driver, exactly as much as is asked for, which ``free`` gives back at once."""
        self.driver.make_current()
        try:
            address = int(ask(self._cuda, "cuMemAlloc", max(1, nbytes)))
        except ProviderError as error:
            free, _ = self.driver.memory()
            raise ResourceError(
                "there is too little free memory on the GPU",
                found=f"{free / 1e9:.2f} GB",
                expected=f"{nbytes / 1e9:.2f} GB",
                remedy="close what uses it (nvidia-smi lists the processes), or take a smaller recipe or --context",
            ) from error
        # An attention kernel may read a slot that no token has reached, and multiply it by 0: it must be no NaN.
        ask(self._cuda, "cuMemsetD8Async", address, 0, max(1, nbytes), self.stream)
        self.driver.synchronize(self.stream)  # before a copy beside the stream
        return address

    def free(self, address: int) -> None:
        self.driver.make_current()
        ask(self._cuda, "cuMemFree", address)

    def kernels(self, cache_dir: Path | None, *, quantized: bool) -> NativeKernels | None:
        module = _kernels()
        if cache_dir is None:
            with contextlib.suppress(RuntimeError):  # a user without a home folder: compiled at each load
                cache_dir = default_cache_dir()
        capability = self.driver.info().compute_capability
        self.driver.make_current()
        library = module.library(self.index, capability, cache_dir)
        return None if library is None else NativeKernels(library, int(module.max_rows(quantized=quantized)))

    def kernels_problem(self) -> str | None:
        reason: str | None = _kernels().reason()
        return reason

    def load(self, options: ort.SessionOptions, bundle: Bundle, graph: str, *, captures: bool) -> ort.InferenceSession:
        record = bundle.manifest.graphs[graph]
        chosen: Mapping[str, str] = {
            "device_id": str(self.index),
            "has_user_compute_stream": "1",
            "user_compute_stream": str(self.stream),
            "enable_cuda_graph": "1" if captures else "0",
        }
        ort.set_default_logger_severity(3)  # it warns at each session that the provider is none of its new plugins
        try:
            return load_graph(bundle.graph_path(graph), options, self.row, bundle, record, chosen)
        finally:
            ort.set_default_logger_severity(2)  # its own default

    def close(self) -> None:
        self.driver.close()


def _kernels() -> ModuleType:
    return importlib.import_module("helium_onnx.kernels.cuda")


def device_failure(error: Exception) -> HeliumOnnxError:
    """An error of ONNX Runtime in a run of the model, in our form."""
    found = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    if is_out_of_memory(error):
        return ResourceError(
            "the GPU ran out of memory in a run of the model",
            found=found,
            remedy="close what uses it (nvidia-smi lists the processes), or take a smaller recipe, --context or batch",
        )
    return ProviderError(
        "the GPU failed in a run of the model",
        found=found,
        remedy="start the program anew; if it comes again, nvidia-smi and sudo dmesg may say why",
    )
