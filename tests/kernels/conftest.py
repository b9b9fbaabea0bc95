"""Every test of the operators needs the library; some run with each of its instruction sets."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
from kernel_graphs import INSTRUCTION_SETS


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest, native_kernels: ctypes.CDLL) -> Iterator[str]:
    """The kernels of each instruction set that this machine has."""
    before = native_kernels.helium_kernels_name()
    if not native_kernels.helium_use_kernels(request.param.encode()):
        pytest.skip(f"this machine has no {request.param}")
    yield request.param
    native_kernels.helium_use_kernels(before)
