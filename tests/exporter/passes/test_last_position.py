"""LastPosition: the logits of each row's last real token, whatever the past and the padding on the right."""

from __future__ import annotations

import graph_making
import numpy as np
import onnx_ir as ir
import pytest

from helium_onnx.exporter.passes.last_position import LastPosition


def head() -> ir.Model:
    values = graph_making.named("hidden", "weight", "input_ids", "attention_mask")
    node = ir.Node("", "MatMul", [values["hidden"], values["weight"]])
    node.outputs[0].shape = ir.Shape(["batch_size", "sequence_length", 320])
    inputs: dict[str, list[int | str]] = {
        "hidden": ["b", "s", 8], "weight": [8, 320], "input_ids": ["b", "s"], "attention_mask": ["b", "t"],
    }  # fmt: skip
    return graph_making.model(inputs, [node], {"logits": node.outputs[0]}, values)


@pytest.mark.parametrize(
    ("mask", "last"),
    [
        ([[1, 1, 1, 1]], [3]),
        ([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]], [3, 2, 0]),
        ([[1, 1, 1, 1, 1, 1]], [3]),  # two tokens of past
        ([[1, 1, 1, 1, 0, 0]], [1]),
    ],
)
def test_numbers(mask: list[list[int]], last: list[int]) -> None:
    rng = np.random.default_rng(0)
    feed = {
        "hidden": rng.standard_normal((len(mask), 4, 8)).astype(np.float32),
        "weight": rng.standard_normal((8, 320)).astype(np.float32),
        "input_ids": np.zeros((len(mask), 4), np.int64),
        "attention_mask": np.array(mask),
    }
    (everything,) = graph_making.run(head(), feed)
    model = head()
    assert LastPosition()(model).modified
    (logits,) = graph_making.run(model, feed)
    np.testing.assert_allclose(logits[:, 0], everything[np.arange(len(mask)), last], rtol=1e-5, atol=1e-6)
    assert logits.shape == (len(mask), 1, 320)
    assert model.graph.outputs[0].shape == ir.Shape(["batch_size", 1, 320])


def test_the_head_reads_one_position(traced: ir.Model) -> None:
    assert LastPosition()(traced).modified
    logits = next(value for value in traced.graph.outputs if value.name == "logits")
    producer = logits.producer()
    assert producer is not None
    assert producer.op_type == "MatMul"
    gather = producer.inputs[0]
    assert gather is not None
    assert gather.producer() is not None
    assert gather.producer().op_type == "GatherND"  # type: ignore[union-attr]


def test_a_graph_without_logits(traced: ir.Model) -> None:
    next(value for value in traced.graph.outputs if value.name == "logits").name = "last_hidden_state"
    assert not LastPosition()(traced).modified
