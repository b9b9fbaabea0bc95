"""Our own CPU kernels: operators for ONNX Runtime, in C++ (src/), built where this package is built.

They read the quantized weights as the bundle stores them (nothing is packed at load, nothing copied), at the speed of
the memory, and give the same bits for a token alone as among others: see docs/kernels.md. A build needs a C++17
compiler; without the library everything runs on ONNX Runtime's own kernels.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

LIBRARY = Path(__file__).with_name("libhelium_kernels.so")
#: What ``platform.machine()`` says, in lower case, of the processors that some of the kernels are vector code for.
VECTORIZED_FOR = ("x86_64", "amd64")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The loaded library; None where it was not built, or cannot be loaded here."""
    if not LIBRARY.exists():
        return None
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
        loaded.helium_kernels_name.restype = ctypes.c_char_p
        loaded.helium_use_kernels.argtypes = [ctypes.c_char_p]
        loaded.helium_read_gigabytes_per_second.argtypes = [ctypes.c_int, ctypes.c_int64]
        for name in ("helium_read_gigabytes_per_second", "helium_int8_gigaops", "helium_fp32_gigaflops"):
            getattr(loaded, name).restype = ctypes.c_double
    except (OSError, AttributeError):  # built for another C library or processor, or from sources of another version
        return None
    return loaded


def instruction_set() -> str | None:
    """The instruction set whose functions run here, as ``avx512-vnni``; None without the library."""
    loaded = library()
    return None if loaded is None else loaded.helium_kernels_name().decode()


def vectorized() -> bool:
    """Whether vector code of ours runs here, and not plain C++ alone: ONNX Runtime's kernels outrun that."""
    return instruction_set() not in (None, "generic")
