"""A bundle to spoil, the cache of prepacked weights that was built for it, and small bundles for CUDA."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prepacked_loads
import pytest
import tiny
from cuda_sessions import Opening
from host_device import HostDevice

import helium_onnx
from helium_onnx import kernels
from helium_onnx.bundle import Bundle
from helium_onnx.recipe import Precision, load_recipe
from helium_onnx.runtimes.cuda_device import NativeKernels
from helium_onnx.runtimes.cuda_session import CudaSession
from helium_onnx.runtimes.prepacked import PrepackedCache


@pytest.fixture
def copy(sample_bundle: Path, tmp_path: Path) -> Path:
    """A copy of ``sample_bundle``, to spoil."""
    return Path(shutil.copytree(sample_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def expected_tokens(sample_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, ...]:
    """The tokens of ``prepacked_loads.load`` without a cache."""
    return prepacked_loads.load(sample_bundle, tmp_path_factory.mktemp("none"), cache=False).token_ids


@pytest.fixture
def cache_folder(copy: Path, tmp_path: Path, expected_tokens: tuple[int, ...]) -> Path:
    """The folder of a cache that was built for ``copy`` under ``tmp_path / "cache"``."""
    assert prepacked_loads.load(copy, tmp_path / "cache").token_ids == expected_tokens
    return PrepackedCache(Bundle.open(copy), tmp_path / "cache").folder


@pytest.fixture(scope="session")
def cuda_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny model under cuda-fp16, vocab_size 320, context 256. Tests only read it."""
    folder = tmp_path_factory.mktemp("cuda")
    return helium_onnx.export(tiny.write_checkpoint(folder / "in"), folder / "out", recipe="cuda-fp16")


@pytest.fixture(scope="session")
def coded_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same over an int8 cache."""
    folder = tmp_path_factory.mktemp("coded")
    recipe = dataclasses.replace(load_recipe("cuda-fp16"), name="fp16-kv8", precision=Precision("float16", "int8"))
    return helium_onnx.export(tiny.write_checkpoint(folder / "in"), folder / "out", recipe=recipe)


@pytest.fixture
def opening(cuda_bundle: Bundle) -> Iterator[Opening]:
    """Opens sessions with a device of their own; they are closed at the end, and have then freed all memory."""
    opened: list[tuple[CudaSession, HostDevice]] = []

    def make(*, bundle: Bundle = cuda_bundle, lazy: bool = True, **options: Any) -> tuple[CudaSession, HostDevice]:
        native = options.pop("kernels", None)
        device = HostDevice(lazy=lazy, native=native)
        opened.append((CudaSession(bundle, device, **options), device))
        return opened[-1]

    yield make
    for session, device in opened:
        session.close()
        assert device.closed and not device.held


@pytest.fixture
def stand_in(native_kernels: object) -> NativeKernels:  # noqa: ARG001
    """Native kernels for up to two rows: a library that can be registered, and decode.onnx for the native graph."""
    return NativeKernels(kernels.LIBRARY, 2)
