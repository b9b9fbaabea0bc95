"""What the machine can do at most: bytes read from memory and operations done in a second, by all threads together.

Measured with the C functions of ``helium_onnx.kernels`` where that library is there, else with numpy: its reading
comes to about nine tenths of what C reads, and it has no int8 multiplication.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from helium_onnx.benchmark import conditions
from helium_onnx.benchmark.process import run_apart

REPEATS = 5
_CACHES = 8  # a buffer as large as so many last-level caches: an eighth of it can be left there from the last pass
_SMALLEST, _LARGEST_SHARE = 256 << 20, 4
_MATRIX = 1536  # of float32: 9 MB, in no core's own cache; the product takes 7.2 GFLOP
#: Libraries of linear algebra read one of these when they start; the product must use as many threads as the session.
_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "BLIS_NUM_THREADS")


@dataclass(frozen=True)
class Limits:
    """Every repeat of each measurement, in 1e9 a second; empty where it could not be measured.

    A machine's limit is the best of the repeats: whatever disturbs a measurement makes it slower. ``by`` is what
    measured, ``buffer_bytes`` the size of what was read.
    """

    by: str
    threads: int
    buffer_bytes: int
    read_gigabytes_per_second: tuple[float, ...] = ()
    int8_gigaops: tuple[float, ...] = ()
    fp32_gigaflops: tuple[float, ...] = ()

    def and_also(self, other: Limits) -> Limits:
        """Both measurements as one."""
        assert (self.by, self.threads) == (other.by, other.threads)
        return Limits(
            self.by,
            self.threads,
            self.buffer_bytes,
            self.read_gigabytes_per_second + other.read_gigabytes_per_second,
            self.int8_gigaops + other.int8_gigaops,
            self.fp32_gigaflops + other.fp32_gigaflops,
        )


def measure(threads: int, repeats: int = REPEATS) -> Limits:
    """The machine's limits, in a process of its own: fresh memory, and as many threads in numpy's libraries too."""
    plain: dict[str, Any] = run_apart(
        "machine", str(threads), str(repeats), environment=dict.fromkeys(_THREADS, str(threads))
    )
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}
    return Limits(**fields)


def main(threads: str, repeats: str) -> None:
    """In that process: measure, and print the limits as JSON."""
    json.dump(asdict(measure_here(int(threads), int(repeats))), sys.stdout)


def measure_here(threads: int, repeats: int, buffer_bytes: int | None = None) -> Limits:
    """The machine's limits, in this process: by the C functions where they are, else by numpy."""
    size = buffer_bytes or _buffer_bytes()
    library = _library()
    ways = _numpy_ways(threads, size) if library is None else _native_ways(library, threads, size)
    by = "numpy" if library is None else "helium_onnx.kernels"
    results = {name: tuple(value for _ in range(repeats) if (value := way()) > 0) for name, way in ways.items()}
    return Limits(by, threads, size, **results)


def _library() -> Any | None:
    """The C functions as a ctypes.CDLL, or None."""
    try:
        from helium_onnx import kernels

        library = kernels.library()
    except (ImportError, AttributeError):
        return None
    return library if hasattr(library, "helium_read_gigabytes_per_second") else None


def _native_ways(library: Any, threads: int, size: int) -> dict[str, Callable[[], float]]:
    """C functions ``double f(int threads)``; the first one has the buffer's size as an int64 behind it.

    0 or less says that the processor has no such instructions.
    """
    import ctypes

    for name in ("helium_read_gigabytes_per_second", "helium_int8_gigaops", "helium_fp32_gigaflops"):
        function = getattr(library, name)
        function.restype = ctypes.c_double
        function.argtypes = [ctypes.c_int, *([ctypes.c_int64] if "bytes" in name else [])]
    return {
        "read_gigabytes_per_second": lambda: library.helium_read_gigabytes_per_second(threads, size),
        "int8_gigaops": lambda: library.helium_int8_gigaops(threads),
        "fp32_gigaflops": lambda: library.helium_fp32_gigaflops(threads),
    }


def _numpy_ways(threads: int, size: int) -> dict[str, Callable[[], float]]:
    # The largest of float32 numbers: of numpy's reductions the one that comes nearest to reading alone (measured beside
    # C with AVX-512 on 2 cores: 33 of 37 to 38 GB/s; a sum of uint64 31, a sum of float32 22). It releases the GIL.
    parts = np.array_split(np.ones(size // 4, np.float32), threads)
    matrix = np.random.default_rng(0).standard_normal((_MATRIX, _MATRIX), np.float32)

    pool = ThreadPoolExecutor(threads)  # kept: its threads start in the first repeat, which is not the best then

    def read() -> float:
        start = time.perf_counter()
        list(pool.map(np.maximum.reduce, parts))
        return sum(part.nbytes for part in parts) / (time.perf_counter() - start) / 1e9

    def multiply() -> float:
        start = time.perf_counter()
        np.matmul(matrix, matrix)
        return 2 * _MATRIX**3 / (time.perf_counter() - start) / 1e9

    return {"read_gigabytes_per_second": read, "fp32_gigaflops": multiply}


def _buffer_bytes() -> int:
    size = max(_SMALLEST, _CACHES * (conditions.cache_bytes() or 0))
    available = conditions.available_memory()
    return size if available is None else min(size, available // _LARGEST_SHARE)
