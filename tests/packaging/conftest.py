"""Bundles for QNN, exported once. Tests only read them."""

from __future__ import annotations

import pytest
from packages import export

from helium_onnx.bundle import Bundle


@pytest.fixture(scope="session")
def qnn_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """helium-docs-7m under qnn-fp16, with a window of 64 tokens."""
    return export("qnn-fp16", tmp_path_factory.mktemp("qnn") / "fp16")


@pytest.fixture(scope="session")
def qnn_int4_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Likewise under qnn-int4."""
    return export("qnn-int4", tmp_path_factory.mktemp("qnn") / "int4")
