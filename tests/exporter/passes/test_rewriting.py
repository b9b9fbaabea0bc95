"""The tools of the passes: nodes are built in place, and readers follow."""

from __future__ import annotations

import graph_making
import numpy as np
import onnx_ir as ir

from helium_onnx.exporter.passes.rewriting import SCOPES, Rewriter, nodes_of, replace_values


def chain() -> ir.Model:
    """``y = Neg(Relu(x))``, and Relu's output is a graph output too."""
    values = graph_making.named("x")
    relu = ir.Node("", "Relu", [values["x"]], metadata_props={SCOPES: "['relu', '']"})
    neg = ir.Node("", "Neg", relu.outputs)
    relu.outputs[0].shape, relu.outputs[0].type = ir.Shape([2]), ir.TensorType(ir.DataType.FLOAT)
    return graph_making.model({"x": [2]}, [relu, neg], {"middle": relu.outputs[0], "y": neg.outputs[0]}, values)


def test_nodes_of_knows_domains() -> None:
    model = chain()
    assert [node.op_type for node in nodes_of(model, "", "Relu")] == ["Relu"]
    assert nodes_of(model, "com.microsoft", "Relu") == []


def test_a_replacement_takes_place_readers_name_and_scope() -> None:
    model = chain()
    (relu,) = nodes_of(model, "", "Relu")
    rewriter = Rewriter(relu)
    new = rewriter.op("Mul", relu.inputs[0], rewriter.constant(2.0, ir.DataType.FLOAT))
    rewriter.replace(new)
    assert [node.op_type for node in model.graph] == ["Constant", "Mul", "Neg"]
    assert [value.name for value in model.graph.outputs] == ["middle", "y"]
    assert model.graph.outputs[0] is new
    assert new.shape == ir.Shape([2])
    assert all(node.metadata_props[SCOPES] == "['relu', '']" for node in list(model.graph)[:2])
    middle, y = graph_making.run(model, {"x": np.array([-1, 3], np.float32)})
    assert middle.tolist() == [-2, 6]
    assert y.tolist() == [2, -6]


def test_replace_values_keeps_a_shape_that_is_known() -> None:
    model = chain()
    (neg,) = nodes_of(model, "", "Neg")
    value = Rewriter(neg).op("Abs", neg.inputs[0])
    value.shape = ir.Shape(["n"])
    replace_values(model.graph, [neg.inputs[0]], [value])  # type: ignore[list-item]
    assert value.name == "middle"
    assert neg.inputs[0] is value
