"""The GPU's side of the seam: what is asked of the driver, of ONNX Runtime and of our kernels."""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest
from fake_cuda import FakeCudaDriver
from host_device import HostDevice

from helium_onnx.bundle import Bundle
from helium_onnx.errors import ProviderError, ResourceError
from helium_onnx.runtimes import cuda_device
from helium_onnx.runtimes.cuda_device import CudaDevice, Device, NativeKernels, device_failure
from helium_onnx.runtimes.graph_loading import session_options
from helium_onnx.runtimes.providers import CUDA


class Result(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2


class Memory:
    """The functions of cuda.bindings.driver that allocate."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.result = Result.CUDA_SUCCESS

    def cuMemAlloc(self, size: int) -> tuple[Result, int]:  # noqa: N802
        self.calls.append(("alloc", size))
        return self.result, 4096

    def cuMemsetD8Async(self, address: int, value: int, size: int, stream: int) -> tuple[Result]:  # noqa: N802
        self.calls.append(("set", address, value, size, stream))
        return (Result.CUDA_SUCCESS,)

    def cuMemFree(self, address: int) -> tuple[Result]:  # noqa: N802
        self.calls.append(("free", address))
        return (Result.CUDA_SUCCESS,)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """A machine with a GPU, as far as opening it goes."""
    functions = Memory()
    monkeypatch.setattr(cuda_device, "CudaDriver", FakeCudaDriver)
    monkeypatch.setattr(cuda_device, "check_libraries", lambda: None)
    monkeypatch.setattr(cuda_device, "start", lambda: (functions, (13, 0)))
    return functions


def test_it_is_the_seams_device(memory: Memory) -> None:
    assert memory.calls == []
    devices: list[Device] = [CudaDevice(), HostDevice()]
    assert [device.kind for device in devices] == ["cuda", "cpu"]
    assert devices[0].row is CUDA


def test_memory_is_exactly_what_is_asked_for_and_zeros(memory: Memory) -> None:
    device = CudaDevice(1)
    assert device.index == 1
    assert device.allocate(1000) == 4096
    device.free(4096)
    assert memory.calls == [("alloc", 1000), ("set", 4096, 0, 1000, device.stream), ("free", 4096)]
    calls: Any = device.driver.calls  # type: ignore[attr-defined]
    assert calls[-3:] == ["make_current", "synchronize", "make_current"]
    device.allocate(0)  # a size that the driver takes
    assert memory.calls[3] == ("alloc", 1)


def test_too_little_of_it_says_how_much_there_is(memory: Memory) -> None:
    device = CudaDevice()
    memory.result = Result.CUDA_ERROR_OUT_OF_MEMORY
    device.driver.free_bytes = 1_200_000_000  # type: ignore[attr-defined]
    with pytest.raises(ResourceError, match=r"too little free memory on the GPU\n.*1\.20 GB\n.*5\.00 GB\n.*nvidia-smi"):
        device.allocate(5_000_000_000)


def test_a_missing_library_closes_the_driver(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    opened: list[FakeCudaDriver] = []

    def make(index: int) -> FakeCudaDriver:
        opened.append(FakeCudaDriver(index))
        return opened[-1]

    def missing() -> None:
        raise ProviderError("libraries of CUDA are missing", found="no libcublas.so.13")

    monkeypatch.setattr(cuda_device, "CudaDriver", make)
    monkeypatch.setattr(cuda_device, "check_libraries", missing)
    with pytest.raises(ProviderError, match=r"no libcublas\.so\.13"):
        CudaDevice()
    assert opened[0].closed


@pytest.mark.parametrize("captures", [False, True])
def test_sessions_compute_on_the_devices_stream(
    memory: Memory,  # noqa: ARG001
    cuda_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    captures: bool,
) -> None:
    asked: list[Any] = []

    def make(path: Path, options: ort.SessionOptions, providers: Any, enable_fallback: int) -> Any:
        asked.extend((path, options, providers, enable_fallback))
        raise RuntimeError("no GPU here")

    monkeypatch.setattr(ort, "InferenceSession", make)
    device = CudaDevice()
    with pytest.raises(Exception, match="no GPU here"):
        device.load(session_options(device.row, 1), cuda_bundle, "prefill", captures=captures)
    path, options, [(name, chosen)], enable_fallback = asked
    assert path == cuda_bundle.graph_path("prefill") and name == "CUDAExecutionProvider" and enable_fallback == 0
    assert chosen == {
        "arena_extend_strategy": "kSameAsRequested",
        "device_id": "0",
        "enable_cuda_graph": "1" if captures else "0",
        "has_user_compute_stream": "1",
        "user_compute_stream": str(device.stream),
    }
    assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    assert options.get_session_config_entry("session.record_ep_graph_assignment_info") == "1"


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path | None], list[tuple[Any, ...]]]:
    """Put a module in place of helium_onnx.kernels.cuda whose library is this; what it was asked."""

    def put(path: Path | None) -> list[tuple[Any, ...]]:
        asked: list[tuple[Any, ...]] = []

        def library(*arguments: Any) -> Path | None:
            asked.append(arguments)
            return path

        module = SimpleNamespace(
            library=library, reason=lambda: "no NVRTC", max_rows=lambda *, quantized: 9 if quantized else 5
        )
        monkeypatch.setitem(sys.modules, "helium_onnx.kernels.cuda", module)  # type: ignore[arg-type]
        return asked

    return put


def test_our_kernels_are_asked_for_with_the_device(
    memory: Memory,  # noqa: ARG001
    kernels: Callable[[Path | None], list[tuple[Any, ...]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = CudaDevice()
    asked = kernels(tmp_path / "lib.so")
    assert device.kernels(tmp_path, quantized=False) == NativeKernels(tmp_path / "lib.so", 5)
    assert device.kernels(tmp_path, quantized=True) == NativeKernels(tmp_path / "lib.so", 9)
    monkeypatch.setattr(cuda_device, "default_cache_dir", lambda: tmp_path / "default")
    device.kernels(None, quantized=True)
    assert asked == [(0, (9, 0), tmp_path)] * 2 + [(0, (9, 0), tmp_path / "default")]

    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(cuda_device, "default_cache_dir", homeless)
    asked = kernels(None)
    assert device.kernels(None, quantized=True) is None and device.kernels_problem() == "no NVRTC"
    assert asked == [(0, (9, 0), None)]


def test_the_real_module_has_what_is_asked_for() -> None:
    module: ModuleType = cuda_device._kernels()
    assert 1 <= module.max_rows(quantized=False) <= module.max_rows(quantized=True) <= 64
    assert module.reason() is None or isinstance(module.reason(), str)
    assert callable(module.library)


def test_a_failure_without_words_has_a_name() -> None:
    error = device_failure(RuntimeError())
    assert isinstance(error, ProviderError) and error.found == "RuntimeError"
    assert isinstance(device_failure(MemoryError()), ResourceError)
