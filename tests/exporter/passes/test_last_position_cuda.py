"""LastPositionCuda: logits of the last position, by a Gather alone."""

from __future__ import annotations

import graph_making
import numpy as np
import onnx_ir as ir
import pytest

from helium_onnx.exporter.passes.last_position_cuda import LastPositionCuda


@pytest.mark.parametrize("tokens", [1, 5])
def test_numbers(tokens: int) -> None:
    values = graph_making.named("hidden", "w")
    head = ir.Node("", "MatMul", [values["hidden"], values["w"]])
    head.outputs[0].shape = ir.Shape(["batch_size", "sequence_length", 3])
    model = graph_making.model(
        {"hidden": ["b", "s", 4], "w": [4, 3]}, [head], {"logits": head.outputs[0]}, values
    )  # fmt: skip
    feed = {
        "hidden": np.random.default_rng(0).standard_normal((2, tokens, 4), np.float32),
        "w": np.random.default_rng(1).standard_normal((4, 3), np.float32),
    }
    (expected,) = graph_making.run(model, feed)
    assert LastPositionCuda()(model).modified
    assert graph_making.operators(model) == {"MatMul": 1, "Gather": 1, "Constant": 1}
    (found,) = graph_making.run(model, feed)
    assert found.shape == (2, 1, 3)
    np.testing.assert_allclose(found, expected[:, -1:], atol=1e-6)
    assert model.graph.outputs[0].shape == ir.Shape(["batch_size", 1, 3])


def test_a_graph_without_logits() -> None:
    model = graph_making.attention(graph_making.config())
    assert not LastPositionCuda()(model).modified
