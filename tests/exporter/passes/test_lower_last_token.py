"""LowerLastToken: the rightmost token that is no padding, wherever padding lies."""

from __future__ import annotations

import graph_making
import numpy as np
import onnx_ir as ir
import pytest
import torch

from helium_onnx.exporter.passes.lower_last_token import LowerLastToken
from helium_onnx.modeling import DOMAIN, last_token

PAD = 3


def graph() -> ir.Model:
    values = graph_making.named("x", "input_ids")
    node = ir.Node(
        DOMAIN,
        "LastToken",
        [values["x"], values["input_ids"]],
        attributes=ir.convenience.convert_attributes({"pad_token_id": PAD}),
    )
    node.outputs[0].shape = ir.Shape(["b", 8])
    inputs: dict[str, list[int | str]] = {"x": ["b", "s", 8], "input_ids": ["b", "s"]}
    return graph_making.model(inputs, [node], {"logits": node.outputs[0]}, values)


@pytest.mark.parametrize(
    ("ids", "last"),
    [
        ([[5, 6, 7, 8]], [3]),
        ([[5, 6, PAD, PAD], [5, 6, 7, 8], [PAD, PAD, PAD, 9]], [1, 3, 3]),
        ([[5, PAD, 7, PAD]], [2]),  # padding inside of a text
        ([[PAD, PAD, PAD, PAD]], [0]),  # as transformers has it
        ([[5]], [0]),
    ],
)
def test_numbers(ids: list[list[int]], last: list[int]) -> None:
    model = graph()
    assert LowerLastToken()(model).modified
    assert not any(node.domain == DOMAIN for node in model.graph)
    x = np.random.default_rng(0).standard_normal((len(ids), len(ids[0]), 8)).astype(np.float32)
    (found,) = graph_making.run(model, {"x": x, "input_ids": np.array(ids)})
    np.testing.assert_array_equal(found, x[np.arange(len(ids)), last])
    eager = last_token(torch.from_numpy(x), torch.tensor(ids), PAD)
    np.testing.assert_array_equal(found, eager.numpy())


def test_a_graph_without_one_stays() -> None:
    model = graph()
    LowerLastToken()(model)
    assert not LowerLastToken()(model).modified
