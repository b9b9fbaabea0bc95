"""What CUDA says of this machine: its driver, its devices, and what each of its errors means to a user.

Over NVIDIA's own ``cuda-bindings``, which is imported when it is first needed. Nothing here needs a GPU to be there.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from helium_onnx.errors import ProviderError

#: onnxruntime-gpu 1.31 and our kernels are built for CUDA 13, whose first driver on Linux is 580.65.06 (R580).
MINIMUM_CUDA = (13, 0)
MINIMUM_DRIVER = "R580 (580.65.06)"
#: CUDA 13 dropped what came before Turing: Maxwell, Pascal and Volta.
MINIMUM_COMPUTE_CAPABILITY = (7, 5)
#: What brings all that CUDA needs. The second command puts onnxruntime-gpu's files over those of onnxruntime, which pip
#: installs after it: see cuda_libraries.py.
INSTALL = "pip install 'helium-onnx[cuda]' && pip install --force-reinstall --no-deps 'onnxruntime-gpu~=1.31.0'"

_DRIVER_LIBRARY = "libcuda.so.1"
_KERNEL_DRIVER = Path("/proc/driver/nvidia/version")
_NOT_READY = 600  # CUDA_ERROR_NOT_READY: what is no error where a question was asked

#: What the driver's error means, and what to do. Errors that are not here are shown by their own names.
_MEANINGS: dict[int, tuple[str, str]] = {
    2: (  # CUDA_ERROR_OUT_OF_MEMORY
        "the GPU has too little free memory",
        "close what uses it (nvidia-smi lists the processes), or take a smaller recipe or --context",
    ),
    34: (  # CUDA_ERROR_STUB_LIBRARY
        "the library libcuda.so.1 that is found first is the toolkit's stub, not the driver's own",
        "take the folder stubs out of LD_LIBRARY_PATH",
    ),
    46: (  # CUDA_ERROR_DEVICE_UNAVAILABLE
        "the GPU is busy: another process has it for itself alone",
        "end that process (nvidia-smi lists them), or allow sharing: sudo nvidia-smi -c DEFAULT",
    ),
    100: (  # CUDA_ERROR_NO_DEVICE
        "the NVIDIA driver sees no GPU",
        "see what nvidia-smi shows; a container needs --gpus all",
    ),
    101: (  # CUDA_ERROR_INVALID_DEVICE
        "there is no such GPU",
        "nvidia-smi -L lists those that there are",
    ),
    802: (  # CUDA_ERROR_SYSTEM_NOT_READY
        "the machine's GPUs are not ready yet",
        "on machines with NVSwitch: sudo systemctl start nvidia-fabricmanager",
    ),
    803: (  # CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
        "the driver's library and its kernel module have different versions",
        "restart the machine: the driver was updated while it ran",
    ),
    804: (  # CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE
        "the package cuda-compat, which stands in for a newer driver, does not work with this GPU",
        f"take it out of LD_LIBRARY_PATH and install a driver from {MINIMUM_DRIVER} on",
    ),
    999: (  # CUDA_ERROR_UNKNOWN
        "the NVIDIA driver does not start",
        "sudo modprobe nvidia_uvm, or restart the machine; sudo dmesg names the cause",
    ),
}
_UNKNOWN = "start the program anew; if it comes again, nvidia-smi and sudo dmesg may say why"


@dataclass(frozen=True)
class DeviceInfo:
    """One CUDA device. Bytes are those of its memory; ``free_bytes`` is 0 where it lets nobody in."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    total_bytes: int
    free_bytes: int
    multiprocessors: int


@dataclass(frozen=True)
class CudaReport:
    """What ``probe`` found. ``problem`` and ``remedy`` are None where CUDA can be used.

    ``driver_version`` is the CUDA version that the driver knows, as ``(13, 0)``; ``kernel_driver_version`` is the
    kernel module's own, as ``580.65.06``. Both are None where there is none to ask. A device that does not work stands
    in ``devices`` too; it is no problem as long as another one does.
    """

    driver_version: tuple[int, int] | None = None
    kernel_driver_version: str | None = None
    devices: tuple[DeviceInfo, ...] = ()
    problem: str | None = None
    remedy: str | None = None


def probe() -> CudaReport:
    """The driver and all devices, or what stands in the way. Never raises.

    To learn how much memory is free, each device is opened for a moment, which takes some time and memory there.
    """
    version: tuple[int, int] | None = None
    devices: list[DeviceInfo] = []
    problem: ProviderError | None = None
    try:
        cuda, version = start()
        flaws = [_device(cuda, index, devices) for index in range(count_devices(cuda))]
        if all(flaws):  # one device that works is enough
            problem = flaws[0]
        check_driver(version)
    except ProviderError as error:
        problem = error
    except Exception as error:
        problem = ProviderError(f"CUDA cannot be asked: {type(error).__name__}: {_line(error)}", remedy=INSTALL)
    what = remedy = None
    if problem is not None:
        what = problem.what if problem.found is None else f"{problem.what} ({problem.found})"
        remedy = problem.remedy
    return CudaReport(version, kernel_driver_version(), tuple(devices), what, remedy)


def start() -> tuple[ModuleType, tuple[int, int]]:
    """The driver's functions, ready to be called, and the CUDA version it knows. Raises ProviderError."""
    _check_library()
    cuda = _bindings()
    ask(cuda, "cuInit", 0)
    number = int(ask(cuda, "cuDriverGetVersion"))
    return cuda, (number // 1000, number % 1000 // 10)


def _bindings() -> ModuleType:
    """The module ``cuda.bindings.driver``. Raises ProviderError where it is not installed or cannot be imported."""
    try:
        from cuda.bindings import driver
    except ModuleNotFoundError as error:
        raise ProviderError(
            "the package cuda-bindings is not installed", remedy="pip install 'cuda-bindings~=13.0'"
        ) from error
    except Exception as error:
        raise ProviderError(
            f"the package cuda-bindings cannot be imported: {_line(error)}",
            remedy="pip install --force-reinstall 'cuda-bindings~=13.0'",
        ) from error
    return driver  # type: ignore[no-any-return]


def count_devices(cuda: ModuleType) -> int:
    """At least 1. Raises ProviderError."""
    count = int(ask(cuda, "cuDeviceGetCount"))
    if count < 1:
        raise ProviderError(_MEANINGS[100][0], remedy=_MEANINGS[100][1])
    return count


def ask(cuda: ModuleType, function: str, *arguments: object) -> Any:
    """Call a function of the driver: its value, the tuple of its values, or None. Raises ProviderError."""
    code, *values = _called(cuda, function, arguments)
    if int(code) != 0:
        raise failure(function, code)
    return values[0] if len(values) == 1 else tuple(values) or None


def ask_whether(cuda: ModuleType, function: str, *arguments: object) -> bool:
    """Call a function that says "not ready" where the answer is no. Raises ProviderError for any other error."""
    code, *_ = _called(cuda, function, arguments)
    if int(code) not in (0, _NOT_READY):
        raise failure(function, code)
    return int(code) == 0


def _called(cuda: ModuleType, function: str, arguments: tuple[object, ...]) -> tuple[Any, ...]:
    try:
        return getattr(cuda, function)(*arguments)  # type: ignore[no-any-return]
    except (RuntimeError, ValueError) as error:
        # RuntimeError: the library, or this function of it, is not there. ValueError: an error that the bindings do not
        # know, of a driver that is newer than they.
        raise ProviderError("the NVIDIA driver fails", found=_line(error), remedy=_UNKNOWN) from error


def failure(function: str, code: int) -> ProviderError:
    """The error that the driver's ``function`` ended with, in our form. ``code`` is a CUresult, which is an int."""
    number = int(code)
    name = f"{getattr(code, 'name', 'error')} {number}"
    what, remedy = _MEANINGS.get(number, ("the NVIDIA driver reports an error", _UNKNOWN))
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if number in (100, 101) and hidden is not None:
        remedy += f"; CUDA_VISIBLE_DEVICES, which is {hidden!r} here, hides others"
    return ProviderError(what, found=f"{name} from {function}", remedy=remedy)


def check_driver(version: tuple[int, int]) -> None:
    """Raise ProviderError for a driver that knows no CUDA 13."""
    if version < MINIMUM_CUDA:
        module = kernel_driver_version()
        raise ProviderError(
            "the NVIDIA driver is too old",
            found=f"{module + ', ' if module else ''}for CUDA {version[0]}.{version[1]}",
            remedy=f"install a driver from {MINIMUM_DRIVER} on, which is for CUDA {MINIMUM_CUDA[0]}.{MINIMUM_CUDA[1]}",
        )


def check_device(info: DeviceInfo) -> None:
    """Raise ProviderError for a device that CUDA 13 has no code for."""
    if info.compute_capability < MINIMUM_COMPUTE_CAPABILITY:
        have, least = (".".join(map(str, pair)) for pair in (info.compute_capability, MINIMUM_COMPUTE_CAPABILITY))
        raise ProviderError(
            f"GPU {info.index}, {info.name}, is too old for CUDA 13",
            found=f"compute capability {have}, needed is {least}",
            remedy="use a GPU of the Turing generation (2018) or newer, or a bundle for CPUs: export --recipe cpu-int4",
        )


@contextmanager
def opened(cuda: ModuleType, device: object) -> Iterator[None]:
    """The device's context is current on this thread within the block; what was current before is so again after."""
    before = ask(cuda, "cuCtxGetCurrent")
    context = ask(cuda, "cuDevicePrimaryCtxRetain", device)
    try:
        ask(cuda, "cuCtxSetCurrent", context)
        yield
    finally:
        ask(cuda, "cuCtxSetCurrent", before)
        ask(cuda, "cuDevicePrimaryCtxRelease", device)


def describe(cuda: ModuleType, index: int) -> DeviceInfo:
    """A device's row, without its free memory; nothing needs to be open for it."""
    device = ask(cuda, "cuDeviceGet", index)
    kinds = cuda.CUdevice_attribute
    major, minor, multiprocessors = (
        int(ask(cuda, "cuDeviceGetAttribute", kind, device))
        for kind in (
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            kinds.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
        )
    )
    name = bytes(ask(cuda, "cuDeviceGetName", 128, device)).split(b"\0")[0].decode(errors="replace")
    return DeviceInfo(index, name, (major, minor), int(ask(cuda, "cuDeviceTotalMem", device)), 0, multiprocessors)


def _device(cuda: ModuleType, index: int, devices: list[DeviceInfo]) -> ProviderError | None:
    """Append a device, with its free memory; return why it cannot be used."""
    info, flaw = describe(cuda, index), None
    try:
        check_device(info)
        with opened(cuda, ask(cuda, "cuDeviceGet", index)):
            free, _ = ask(cuda, "cuMemGetInfo")
        info = replace(info, free_bytes=int(free))
    except ProviderError as error:
        flaw = error
    devices.append(info)
    return flaw


def _check_library() -> None:
    """Before any package is asked for: without a driver none of them would help."""
    try:
        ctypes.CDLL(_DRIVER_LIBRARY)
    except OSError as error:
        absent = str(error).startswith(_DRIVER_LIBRARY) and "No such file" in str(error)
        what = "there is no NVIDIA driver here" if absent else "the NVIDIA driver's library cannot be loaded"
        found = f"{_DRIVER_LIBRARY} is not found" if absent else _line(error)
        raise ProviderError(what, found=found, remedy=_install_driver()) from error


def _install_driver() -> str:
    kernel_driver = kernel_driver_version()
    if kernel_driver is not None:
        return (
            f"the machine has driver {kernel_driver}: in a container, start it with --gpus all; "
            f"else put the folder of {_DRIVER_LIBRARY} into LD_LIBRARY_PATH"
        )
    return f"if this machine has an NVIDIA GPU: install its driver, {MINIMUM_DRIVER} or newer"


def kernel_driver_version() -> str | None:
    """The version of the kernel's NVIDIA module, as ``580.65.06``; None where none is loaded."""
    try:
        with _KERNEL_DRIVER.open("rb") as file:
            text = file.read(4096).decode(errors="replace")
    except OSError:
        return None
    found = re.search(r"Kernel Module.*?\s(\d{3,}(?:\.\d+)+)\s", text)
    return found[1] if found else None


def _line(error: Exception) -> str:
    """The first line of what a library said."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
