"""SetOperatorSet: the imports of a lowered graph, and nothing that means something else there."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from half_precision import stored

from helium_onnx.exporter.passes.lower_attention_static import LowerAttentionStatic
from helium_onnx.exporter.passes.lower_norm import LowerNormOpset23
from helium_onnx.exporter.passes.set_operator_set import SetOperatorSet


def test_version(traced: ir.Model) -> None:
    model = stored(traced, "qnn-fp16")
    for lowering in (LowerAttentionStatic(), LowerNormOpset23()):
        lowering(model)
    assert SetOperatorSet(23)(model).modified
    assert model.graph.opset_imports[""] == 23


def test_an_operator_whose_definition_changed() -> None:
    x = ir.Value(name="x", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.Node("", "GroupNormalization", [x])
    model = ir.Model(ir.Graph([x], [node.outputs[0]], nodes=[node], opset_imports={"": 18}), ir_version=10)
    with pytest.raises(AssertionError, match="GroupNormalization may mean something else in set 23"):
        SetOperatorSet(23)(model)
