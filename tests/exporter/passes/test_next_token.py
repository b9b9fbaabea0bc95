"""NextToken: logits in float32, and where they are largest."""

from __future__ import annotations

import graph_making
import numpy as np
import onnx_ir as ir

from helium_onnx.exporter.passes.next_token import NextToken


def test_numbers() -> None:
    values = graph_making.named("x")
    head = ir.Node("", "Identity", [values["x"]])
    head.outputs[0].shape = ir.Shape(["batch_size", "sequence_length", 5])
    head.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
    model = graph_making.model({"x": ["b", "s", 5]}, [head], {"logits": head.outputs[0]}, values)
    values["x"].type = ir.TensorType(ir.DataType.FLOAT16)
    assert NextToken()(model).modified
    assert [value.name for value in model.graph.outputs] == ["logits", "next_token_ids"]
    assert model.graph.outputs[1].shape == ir.Shape(["batch_size", "sequence_length"])
    x = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float16)
    x[0, 0] = 7  # of several largest the first
    logits, chosen = graph_making.run(model, {"x": x})
    assert (logits.dtype, chosen.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(logits, x)
    np.testing.assert_array_equal(chosen, x.argmax(-1))


def test_a_graph_without_logits() -> None:
    assert not NextToken()(graph_making.attention(graph_making.config())).modified
