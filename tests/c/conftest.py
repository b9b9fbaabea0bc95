"""The C library through ctypes; tests/c/run.py builds it and says where it is."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest
from c_library import Library


@pytest.fixture(scope="session")
def library() -> Library:
    """Skips where there is none; fails instead where HELIUM_REQUIRE_C says so."""
    path = os.environ.get("HELIUM_C_LIBRARY", "")
    if not Path(path).is_file():
        if os.environ.get("HELIUM_REQUIRE_C") == "1":
            pytest.fail(f"HELIUM_C_LIBRARY names no library: {path!r}")
        pytest.skip("the C library is not built: make c")
    return Library(ctypes.CDLL(path))
