"""ForgetShapes: nothing between inputs and outputs keeps the trace's shape."""

from __future__ import annotations

import onnx_ir as ir

from helium_onnx.exporter.passes.forget_shapes import ForgetShapes


def test_shapes(traced: ir.Model) -> None:
    outputs = {value.name: value.shape for value in traced.graph.outputs}
    between = [value for node in traced.graph for value in node.outputs if not value.is_graph_output()]
    assert any(value.shape is not None for value in between)
    assert ForgetShapes()(traced).modified
    assert all(value.shape is None for value in between)
    assert {value.name: value.shape for value in traced.graph.outputs} == outputs
    assert not ForgetShapes()(traced).modified
