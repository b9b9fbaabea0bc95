"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest

import helium_onnx

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
