"""What is said of a machine's driver and devices, over fake bindings; test_cuda_driver.py has the real ones."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helium_onnx.errors import ProviderError
from helium_onnx.runtimes import cuda_probe
from helium_onnx.runtimes.cuda_driver import CudaDriver, DeviceInfo, probe


@pytest.fixture
def no_driver_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the kernel would say its driver's version; there is no such file yet."""
    monkeypatch.setattr(cuda_probe, "_KERNEL_DRIVER", tmp_path / "version")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "version"


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, no_driver_file: Path) -> Callable[[Exception | None], None]:
    """Set what loading libcuda.so.1 raises."""
    assert not no_driver_file.exists()

    def set_error(error: Exception | None) -> None:
        def load(name: str) -> object:
            assert name == "libcuda.so.1"
            if error is not None:
                raise error
            return object()

        monkeypatch.setattr(cuda_probe.ctypes, "CDLL", load)

    return set_error


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch, library: Callable[[Exception | None], None]) -> Callable[..., None]:
    """Put a module with the given functions in the place of cuda.bindings.driver; None: there is none."""
    library(None)

    def put(module: types.ModuleType | None = None, **functions: Callable[..., tuple[Any, ...]]) -> None:
        if module is None and functions:
            module = types.ModuleType("cuda.bindings.driver")
            vars(module).update(functions)
        parent = None if module is None else types.SimpleNamespace(driver=module)
        monkeypatch.setitem(sys.modules, "cuda.bindings", parent)
        monkeypatch.setitem(sys.modules, "cuda.bindings.driver", module)

    return put


def raising(error: Exception) -> Callable[..., tuple[Any, ...]]:
    def function(*_: object) -> tuple[Any, ...]:
        raise error

    return function


NOT_FOUND = OSError("libcuda.so.1: cannot open shared object file: No such file or directory")


def test_no_driver(library: Callable[[Exception], None]) -> None:
    library(NOT_FOUND)
    report = probe()
    assert report.problem == "there is no NVIDIA driver here (libcuda.so.1 is not found)"
    assert "install its driver, R580" in (report.remedy or "")
    assert (report.driver_version, report.kernel_driver_version, report.devices) == (None, None, ())


def test_a_container_without_the_drivers_library(library: Callable[[Exception], None], no_driver_file: Path) -> None:
    no_driver_file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.82.07  Tue Aug 26 03:25:10 UTC 2025")
    library(NOT_FOUND)
    report = probe()
    assert report.kernel_driver_version == "580.82.07"
    assert "--gpus all" in (report.remedy or "")


def test_a_library_that_is_broken(library: Callable[[Exception], None]) -> None:
    library(OSError("/usr/lib/libcuda.so.1: invalid ELF header"))
    assert probe().problem == (
        "the NVIDIA driver's library cannot be loaded (/usr/lib/libcuda.so.1: invalid ELF header)"
    )


def test_bindings_that_are_missing_or_broken(bindings: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    bindings(None)
    assert probe().problem == "the package cuda-bindings is not installed"
    assert probe().remedy == "pip install 'cuda-bindings~=13.0'"
    with pytest.raises(ProviderError, match="cuda-bindings is not installed"):
        CudaDriver()

    class Broken:
        def __getattr__(self, name: str) -> object:
            raise RuntimeError("built for another numpy\nand more")

    monkeypatch.setitem(sys.modules, "cuda.bindings", Broken())
    assert "cannot be imported: built for another numpy" in (probe().problem or "")
    assert "and more" not in (probe().problem or "")


@pytest.mark.parametrize("error", [TypeError("an int is required"), KeyError("x"), OSError(5, "I/O"), ValueError()])
def test_bindings_that_raise_anything(error: Exception, bindings: Callable[..., None]) -> None:
    bindings(cuInit=raising(error))
    report = probe()
    assert report.problem
    assert report.remedy
    assert "\n" not in report.problem


def test_a_function_that_the_driver_lacks(bindings: Callable[..., None]) -> None:
    bindings(cuInit=raising(RuntimeError('Function "cuInit" not found')))
    assert probe().problem == 'the NVIDIA driver fails (Function "cuInit" not found)'


def test_devices_that_are_hidden(bindings: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    bindings(cuInit=lambda _: (100,))
    assert "CUDA_VISIBLE_DEVICES, which is '' here" in (probe().remedy or "")


def device_bindings(capabilities: list[tuple[int, int]], version: int = 13000) -> dict[str, Any]:
    kinds = types.SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=0,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=1,
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT=2,
    )
    return {
        "CUdevice_attribute": kinds,
        "cuInit": lambda _: (0,),
        "cuDriverGetVersion": lambda: (0, version),
        "cuDeviceGetCount": lambda: (0, len(capabilities)),
        "cuDeviceGet": lambda index: (0, index),
        "cuDeviceGetAttribute": lambda kind, device: (0, (*capabilities[device], 46)[kind]),
        "cuDeviceGetName": lambda _, device: (0, f"GPU {device}\0rest".encode()),
        "cuDeviceTotalMem": lambda _: (0, 8 << 30),
        "cuCtxGetCurrent": lambda: (0, "before"),
        "cuCtxSetCurrent": lambda _: (0,),
        "cuDevicePrimaryCtxRetain": lambda device: (0, device),
        "cuDevicePrimaryCtxRelease": lambda _: (0,),
        "cuMemGetInfo": lambda: (0, 7 << 30, 8 << 30),
    }


def test_an_old_device_beside_a_good_one_is_no_problem(bindings: Callable[..., None]) -> None:
    bindings(**device_bindings([(6, 1), (8, 9)]))
    report = probe()
    assert (report.problem, report.remedy) == (None, None)
    assert report.devices == (
        DeviceInfo(0, "GPU 0", (6, 1), 8 << 30, 0, 46),
        DeviceInfo(1, "GPU 1", (8, 9), 8 << 30, 7 << 30, 46),
    )
    bindings(**device_bindings([(6, 1), (7, 0)]))
    assert (probe().problem or "").startswith("GPU 0, GPU 0, is too old for CUDA 13")


def test_an_old_driver_still_shows_its_devices(bindings: Callable[..., None], no_driver_file: Path) -> None:
    no_driver_file.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.14  Release Build  (a@b)\nGCC version: 12.2.0"
    )
    bindings(**device_bindings([(9, 0)], version=12040))
    report = probe()
    assert report.driver_version == (12, 4)
    assert report.problem == "the NVIDIA driver is too old (550.54.14, for CUDA 12.4)"
    assert [device.name for device in report.devices] == ["GPU 0"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"Kernel Module", b"x" * 100_000])
def test_a_version_file_that_says_nothing(content: bytes, no_driver_file: Path) -> None:
    no_driver_file.write_bytes(content)
    assert cuda_probe.kernel_driver_version() is None


def test_a_version_file_that_is_a_folder(no_driver_file: Path) -> None:
    no_driver_file.mkdir()
    assert cuda_probe.kernel_driver_version() is None
