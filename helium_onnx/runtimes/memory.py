"""Give freed memory back to the system after a load."""

from __future__ import annotations

import contextlib
import ctypes
import sys


def return_freed_memory() -> None:
    """Let glibc return the pages that packing and parsing have freed; elsewhere nothing needs to be done.

    The allocator keeps them otherwise: measured after the load of a 2 B bundle, 67 of 195 MB of private memory.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # musl and bionic have no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
