"""Our own CUDA kernels: operators for ONNX Runtime's CUDA provider (device/), for decode steps of a few rows.

The operators are built with the package, by a C++ compiler alone. The kernels are compiled by NVRTC (NVIDIA's compiler
as a library; it comes with ``onnxruntime-gpu[cuda]``) for the GPU at hand, when they are first asked for, and kept in
the cache folder. Without either, decode steps run on ONNX Runtime's kernels.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).with_name("device")
LIBRARY = Path(__file__).with_name("libhelium_device.so")

#: Rows that our kernels decode together: eight are rows of one product of the tensor cores (device/linear.cuh).
MAX_NATIVE_ROWS = 8
#: Of quantized matrices: two products, of which the second finds the weights in the L2 cache, still take less time than
#: ONNX Runtime, which makes floating-point matrices first (docs/cuda.md).
MAX_QUANTIZED_ROWS = 16

_TYPES = ("HELIUM_HALF", "HELIUM_BFLOAT")
#: The oldest compute capability with asynchronous copies and bfloat16.
OLDEST_CAPABILITY = (8, 0)
#: From here on a kernel may begin before the one before it has ended.
_OVERLAPS = (9, 0)
#: Bytes of shared memory that three units in flight a warp ask for, with a row of 7040 columns beside them; GPUs with
#: less (those of desktops have 99 KiB a block) keep two.
_ROOM_FOR_THREE = 160 << 10

_problem: str | None = None


def reason() -> str | None:
    """Why there are no kernels of ours: what is missing, or what went wrong when they were last asked for."""
    if not LIBRARY.exists():
        return f"no {LIBRARY.name}: install a C++ compiler and run python -m helium_onnx.kernels.build"
    try:
        _nvrtc()
    except (ImportError, RuntimeError, OSError) as error:
        text = str(error).partition(":")[0].strip()
        return f"NVRTC cannot be loaded ({text}): pip install 'nvidia-cuda-nvrtc~=13.0' 'cuda-bindings~=13.0'"
    return _problem


def max_rows(*, quantized: bool) -> int:
    """Rows that decode steps of a bundle have on our kernels, at most: of more, ONNX Runtime's are faster."""
    return MAX_QUANTIZED_ROWS if quantized else MAX_NATIVE_ROWS


def library(index: int, compute_capability: tuple[int, int], cache_dir: Path | None = None) -> Path | None:
    """The operators' library, for ``SessionOptions.register_custom_ops_library``, with kernels for GPU ``index``.

    They are compiled where ``cache_dir`` does not have them yet (about fifteen seconds, once). None where they cannot
    be had; ``reason`` then says why.
    """
    global _problem
    _problem = None
    _problem = reason()
    if _problem is None and compute_capability < OLDEST_CAPABILITY:
        _problem = f"compute capability {_dotted(compute_capability)}; ours need {_dotted(OLDEST_CAPABILITY)}"
    if _problem is None:
        try:
            _problem = _load(index, compute_capability, cache_dir)
        except (RuntimeError, OSError) as error:
            _problem = str(error)
    return LIBRARY if _problem is None else None


def compile_kernels(compute_capability: tuple[int, int], depth: int, define: str) -> bytes:
    """A CUDA binary of all kernels of one type. No GPU is needed.

    ``depth``: units of weights in flight a warp (device/linear.cuh). ``define``: HELIUM_HALF or HELIUM_BFLOAT.

    Raises:
        RuntimeError: NVRTC refused; its messages follow.
    """
    nvrtc = _nvrtc()
    headers = {path.name: path.read_bytes() for path in _sources() if path.suffix != ".cu"}
    source = (SOURCES / "kernels.cu").read_bytes()
    names = [name.encode() for name in headers]
    program = _ask(nvrtc, "nvrtcCreateProgram", source, b"kernels.cu", len(names), list(headers.values()), names)
    try:
        options = [
            f"--gpu-architecture=sm_{compute_capability[0]}{compute_capability[1]}".encode(),
            b"--std=c++17",
            f"-DHELIUM_DEPTH={depth}".encode(),
            f"-D{define}".encode(),
        ]
        (result,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = _text(nvrtc, program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog").decode(errors="replace")
            raise RuntimeError(f"NVRTC refused the kernels for {_dotted(compute_capability)}: {log.strip()[:2000]}")
        return _text(nvrtc, program, "nvrtcGetCUBINSize", "nvrtcGetCUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _load(index: int, compute_capability: tuple[int, int], cache_dir: Path | None) -> str | None:
    """Give the device's kernels to the operators, once a process; what went wrong, or None."""
    if (index, compute_capability) in _loaded():
        return None
    driver: Any = importlib.import_module("cuda.bindings.driver")
    attribute = driver.CUdevice_attribute
    device = _ask(driver, "cuDeviceGet", index)
    processors = int(_ask(driver, "cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device))
    shared = attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    shared_bytes = int(_ask(driver, "cuDeviceGetAttribute", shared, device))
    depth = 3 if shared_bytes >= _ROOM_FOR_THREE else 2
    with ThreadPoolExecutor(len(_TYPES)) as pool:
        images = list(pool.map(lambda define: _image(compute_capability, depth, define, cache_dir), _TYPES))
    operators = ctypes.CDLL(str(LIBRARY))
    operators.helium_device_load.restype = ctypes.c_char_p
    for image in images:
        problem: bytes | None = operators.helium_device_load(
            index, image, processors, shared_bytes, depth, int(compute_capability >= _OVERLAPS)
        )
        if problem is not None:
            return problem.decode()
    _loaded().add((index, compute_capability))
    return None


@cache
def _loaded() -> set[tuple[int, tuple[int, int]]]:
    """The devices whose kernels the operators have."""
    return set()


def _image(compute_capability: tuple[int, int], depth: int, define: str, cache_dir: Path | None) -> bytes:
    """As ``compile_kernels``, from the cache where it is there."""
    if cache_dir is None:
        return compile_kernels(compute_capability, depth, define)
    digest = hashlib.sha256()
    for part in (*(path.read_bytes() for path in _sources()), repr(_ask(_nvrtc(), "nvrtcVersion")).encode()):
        digest.update(hashlib.sha256(part).digest())
    name = f"{define.lower()}-sm_{compute_capability[0]}{compute_capability[1]}-{depth}-{digest.hexdigest()[:16]}.cubin"
    path = cache_dir / "kernels" / name
    try:
        return path.read_bytes()
    except OSError:
        image = compile_kernels(compute_capability, depth, define)
    partial = path.with_suffix(f".{os.getpid()}")
    try:  # where it cannot be kept it is compiled again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(image)
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
    return image


def _sources() -> list[Path]:
    """The kernels' sources; operators.cpp and driver.h are the host's."""
    return sorted(path for path in SOURCES.iterdir() if path.suffix in (".cu", ".cuh") or path.name == "arguments.h")


def _nvrtc() -> Any:
    nvrtc: Any = importlib.import_module("cuda.bindings.nvrtc")
    _ask(nvrtc, "nvrtcVersion")  # the bindings can be imported without the library that they bind
    return nvrtc


def _ask(module: Any, function: str, *arguments: object) -> Any:
    """Call a function of cuda-bindings: a tuple of its result's code and values."""
    result, *values = getattr(module, function)(*arguments)
    if int(result) != 0:
        raise RuntimeError(f"{function} failed: {result}")
    return values[0] if len(values) == 1 else tuple(values)


def _text(nvrtc: Any, program: Any, size: str, function: str) -> bytes:
    buffer = b" " * int(_ask(nvrtc, size, program))
    _ask(nvrtc, function, program, buffer)
    return buffer


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
