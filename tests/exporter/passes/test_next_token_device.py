"""NextTokenDevice: one output more."""

from __future__ import annotations

import graph_making
import onnx_ir as ir
from half_precision import names, nodes, stored

from helium_onnx.exporter.passes.lower_linear_device import LowerLinearDevice
from helium_onnx.exporter.passes.next_token_device import NextTokenDevice


def test_the_output(traced: ir.Model) -> None:
    model = stored(traced)
    LowerLinearDevice()(model)
    before = len(model.graph.outputs)
    assert NextTokenDevice()(model).modified
    (node,) = nodes(model, "DeviceArgMax")
    assert names(node.inputs) == ["logits"]
    assert len(model.graph.outputs) == before + 1
    chosen = model.graph.outputs[-1]
    assert chosen is node.outputs[0]
    assert (chosen.name, chosen.dtype) == ("next_token_ids", ir.DataType.INT64)
    assert chosen.shape is not None and len(chosen.shape) == 2


def test_a_graph_without_logits() -> None:
    assert not NextTokenDevice()(graph_making.attention(graph_making.config())).modified
