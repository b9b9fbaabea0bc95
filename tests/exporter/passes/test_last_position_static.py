"""LastPositionStatic: logits of the token that an input names."""

from __future__ import annotations

import graph_making
import numpy as np
import onnx_ir as ir
import pytest

from helium_onnx.exporter.passes.last_position_static import LastPositionStatic


@pytest.mark.parametrize("last", [0, 2, 4])
def test_numbers(last: int) -> None:
    values = graph_making.named("hidden", "w")
    head = ir.Node("", "MatMul", [values["hidden"], values["w"]])
    head.outputs[0].shape = ir.Shape(["batch_size", "sequence_length", 3])
    model = graph_making.model({"hidden": ["b", "s", 4], "w": [4, 3]}, [head], {"logits": head.outputs[0]}, values)
    feed = {
        "hidden": np.random.default_rng(0).standard_normal((1, 5, 4), np.float32),
        "w": np.random.default_rng(1).standard_normal((4, 3), np.float32),
    }
    (expected,) = graph_making.run(model, feed)
    assert LastPositionStatic()(model).modified
    assert graph_making.operators(model) == {"MatMul": 1, "Gather": 1}
    (found,) = graph_making.run(model, {**feed, "last_position": np.array([last], np.int64)})
    np.testing.assert_allclose(found, expected[:, last : last + 1], atol=1e-6)
    assert model.graph.outputs[0].shape == ir.Shape(["batch_size", 1, 3])


def test_a_graph_without_logits() -> None:
    assert not LastPositionStatic()(graph_making.attention(graph_making.config())).modified
