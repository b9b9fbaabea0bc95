"""A bundle that was damaged, or whose graphs are none, is one clear error, whichever kernels would run it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import bundles
import pytest

import helium_onnx
from helium_onnx.contract import WEIGHTS_FILE
from helium_onnx.errors import BundleError, IntegrityError
from helium_onnx.runtimes.onnxruntime_session import OnnxRuntimeSession
from helium_onnx.runtimes.opening import KernelChoice

PHASES = ("prefill", "decode")


@pytest.fixture(params=["native", "onnxruntime"])
def kernels(request: pytest.FixtureRequest) -> KernelChoice:
    if request.param == "native":
        request.getfixturevalue("native_kernels")
    chosen: KernelChoice = request.param
    return chosen


def graph_of(kernels: KernelChoice, phase: str) -> str:
    """The graph's file name."""
    return f"{phase}.native.onnx" if kernels == "native" else f"{phase}.onnx"


def load(bundle: Path, **options: Any) -> None:
    """Load both graphs."""
    session = helium_onnx.load(bundle, **options).session
    if isinstance(session, OnnxRuntimeSession):
        session.wait()  # its decode graph is loaded in the background


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("content", [b"", b"no graph at all", bytes(1000)])
def test_a_graph_that_is_none(
    sample_bundle: Path, tmp_path: Path, kernels: KernelChoice, phase: str, content: bytes
) -> None:
    name = graph_of(kernels, phase)
    bundle = bundles.forge(
        sample_bundle, tmp_path / "b", change=lambda folder: (folder / "onnx" / name).write_bytes(content)
    )
    for cache in (False, True):
        with pytest.raises(BundleError) as caught:
            load(bundle, kernels=kernels, cache=cache, cache_dir=tmp_path / "cache")
        assert name in caught.value.what
        assert caught.value.found and caught.value.remedy


@pytest.mark.parametrize("phase", PHASES)
def test_a_graph_of_another_contract(sample_bundle: Path, tmp_path: Path, kernels: KernelChoice, phase: str) -> None:
    """prefill gives the last position's logits, decode those of all: each in the other's place is caught."""
    name, other = (graph_of(kernels, which) for which in (phase, {"prefill": "decode", "decode": "prefill"}[phase]))

    def swap(folder: Path) -> None:
        shutil.copy(folder / "onnx" / other, folder / "onnx" / name)

    bundle = bundles.forge(sample_bundle, tmp_path / "b", change=swap)
    with pytest.raises(IntegrityError, match=rf"the outputs of {re.escape(name)}[\s\S]*logits[\s\S]*expected: logits"):
        load(bundle, kernels=kernels, cache=False)


@pytest.mark.parametrize("cache", [False, True])
def test_a_flipped_bit_of_the_weights(copy: Path, tmp_path: Path, kernels: KernelChoice, cache: bool) -> None:
    bundles.flip_bit(copy / WEIGHTS_FILE)
    with pytest.raises(IntegrityError, match=r"model\.onnx_data has another content"):
        helium_onnx.load(copy, kernels=kernels, cache=cache, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("prepacked/*"))
