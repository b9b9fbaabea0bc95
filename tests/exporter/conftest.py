"""A traced graph, made once: tests of passes change a clone of it."""

from __future__ import annotations

from collections.abc import Callable

import graph_making
import onnx_ir as ir
import pytest

from helium_onnx.exporter.trace import trace


@pytest.fixture(scope="session")
def _traced() -> ir.Model:
    return trace(graph_making.config())


@pytest.fixture
def traced(_traced: ir.Model) -> ir.Model:
    """A trace of ``graph_making.config()``: three layers, the last of them repeated."""
    return _traced.clone()


@pytest.fixture(scope="session")
def traced_with_layers() -> Callable[[int], ir.Model]:
    """Traces of one, two ... layers."""
    return lambda layers: trace(graph_making.config(num_hidden_layers=layers))
