"""Fixtures that several test files share."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import helium_onnx
from helium_onnx import kernels
from helium_onnx.kernels.build import compiler
from helium_onnx.tokenizer import Tokenizer

SAMPLE = Path(__file__).parents[1] / "samples" / "helium-docs-7m"


def pytest_configure() -> None:
    """Give each of several test processes a core: threads of two would wait for each other, and that costs half of the
    time. What a session takes as its number of threads follows from the cores that a process may use.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")  # gw0, gw1, ...
    if worker is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(scope="session")
def sample_checkpoint() -> Path:
    """The small trained checkpoint: vocab_size 6000, bos 1, eos 2, pad 3."""
    return SAMPLE


@pytest.fixture(scope="session")
def tokenizer(sample_checkpoint: Path) -> Tokenizer:
    """The sample's."""
    return Tokenizer.from_folder(sample_checkpoint, vocab_size=6000, bos_token_id=1, eos_token_ids=(2,))


@pytest.fixture(scope="session")
def export_sample(sample_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Exports the sample checkpoint under a shipped recipe, once in a session. Tests only read what comes out."""
    folder = tmp_path_factory.mktemp("bundles")
    return functools.cache(lambda recipe: helium_onnx.export(sample_checkpoint, folder / recipe, recipe=recipe).path)


@pytest.fixture(scope="session")
def sample_bundle(export_sample: Callable[[str], Path]) -> Path:
    """The sample checkpoint under cpu-int4. Tests only read it."""
    return export_sample("cpu-int4")


@pytest.fixture(scope="session")
def sample_bundle_fp32(export_sample: Callable[[str], Path]) -> Path:
    """The sample checkpoint under cpu-fp32. Tests only read it."""
    return export_sample("cpu-fp32")


@pytest.fixture(scope="session")
def native_kernels() -> ctypes.CDLL:
    """The library of our own kernels. Where a compiler could have built it, a test that needs it fails without."""
    library = kernels.library()
    if library is None:
        remedy = "build it: python -m helium_onnx.kernels.build"
        assert compiler() is None, f"{kernels.LIBRARY} is missing or cannot be loaded; {remedy}"
        pytest.skip("there is no C++ compiler, and so no library of kernels")
    return library
