"""Fixtures that several test files share."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

import helium_onnx
from helium_onnx import kernels
from helium_onnx.kernels.build import compiler

SAMPLE = Path(__file__).parents[1] / "samples" / "helium-docs-7m"


@pytest.fixture(scope="session")
def sample_checkpoint() -> Path:
    """The small trained checkpoint: vocab_size 6000, bos 1, eos 2, pad 3."""
    return SAMPLE


@pytest.fixture(scope="session")
def sample_bundle(sample_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample checkpoint under cpu-int4. Tests only read it."""
    out = tmp_path_factory.mktemp("bundles") / "int4"
    helium_onnx.export(sample_checkpoint, out, recipe="cpu-int4")
    return out


@pytest.fixture(scope="session")
def sample_bundle_fp32(sample_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample checkpoint under cpu-fp32. Tests only read it."""
    out = tmp_path_factory.mktemp("bundles") / "fp32"
    helium_onnx.export(sample_checkpoint, out, recipe="cpu-fp32")
    return out


@pytest.fixture(scope="session")
def native_kernels() -> ctypes.CDLL:
    """The library of our own kernels. Where a compiler could have built it, a test that needs it fails without."""
    library = kernels.library()
    if library is None:
        remedy = "build it: python -m helium_onnx.kernels.build"
        assert compiler() is None, f"{kernels.LIBRARY} is missing or cannot be loaded; {remedy}"
        pytest.skip("there is no C++ compiler, and so no library of kernels")
    return library
