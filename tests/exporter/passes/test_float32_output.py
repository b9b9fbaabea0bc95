"""Float32Output: results in float32 under the names that they had."""

from __future__ import annotations

import graph_making
import numpy as np
import onnx_ir as ir
import pytest

from helium_onnx.exporter.passes.float32_output import Float32Output


def graph(dtype: ir.DataType) -> ir.Model:
    values = graph_making.named("x")
    node = ir.Node("", "Add", [values["x"], values["x"]])
    model = graph_making.model({"x": ["b", 4]}, [node], {"logits": node.outputs[0]}, values)
    for value in (values["x"], node.outputs[0]):
        value.type = ir.TensorType(dtype)
    node.outputs[0].shape = ir.Shape(["b", 4])
    return model


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_half_precision_becomes_float32(dtype: ir.DataType) -> None:
    model = graph(dtype)
    assert Float32Output()(model).modified
    (output,) = model.graph.outputs
    assert (output.name, output.dtype, output.shape) == ("logits", ir.DataType.FLOAT, ir.Shape(["b", 4]))
    producer = output.producer()
    assert producer is not None and producer.op_type == "Cast"
    assert producer.inputs[0] is not None and producer.inputs[0].name == "logits_in_half_precision"
    if dtype == ir.DataType.FLOAT16:
        x = np.array([[1.5, -2.0, 0.25, 100.0]], np.float16)
        (found,) = graph_making.run(model, {"x": x})
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, 2 * x.astype(np.float32))


def test_float32_stays() -> None:
    assert not Float32Output()(graph(ir.DataType.FLOAT)).modified
