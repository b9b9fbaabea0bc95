"""LowerAttentionGroupQuery: one fused node a layer, whose numbers are modeling.causal_attention's."""

from __future__ import annotations

import graph_making
import numpy as np
import onnx_ir as ir
import pytest

from helium_onnx.exporter.passes.lower_attention_group_query import LowerAttentionGroupQuery

CASES = {
    "prefill": (0, 6, [[1] * 6]),
    "right-padded prefill": (0, 6, [[1] * 6, [1] * 4 + [0] * 2]),
    "decode": (5, 1, [[1] * 6, [1] * 6]),
    "chunk": (5, 3, [[1] * 8]),
}


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("model_type", ["helium", "llama"])
@pytest.mark.parametrize("case", CASES)
def test_numbers(case: str, model_type: str, kv_heads: int) -> None:
    past, new, mask = CASES[case]
    sizes = graph_making.config(model_type, num_key_value_heads=kv_heads)
    model = graph_making.attention(sizes)
    assert LowerAttentionGroupQuery()(model).modified
    assert graph_making.operators(model)["com.microsoft.GroupQueryAttention"] == 1
    feed = graph_making.attention_feed(sizes, past, new, mask)
    real = np.array(mask)[:, past:] == 1
    found, expected = graph_making.run(model, feed), graph_making.attention_eagerly(sizes, feed)
    np.testing.assert_allclose(found[0][real], expected[0][real], atol=2e-6)
    for have, want in zip(found[1:], expected[1:], strict=True):
        for row, length in enumerate(np.array(mask).sum(1)):
            np.testing.assert_allclose(have[row, :, :length], want[row, :, :length], atol=2e-6)


def test_all_layers_share_the_lengths(traced: ir.Model) -> None:
    assert LowerAttentionGroupQuery()(traced).modified
    nodes = [node for node in traced.graph if node.op_type == "GroupQueryAttention"]
    assert len(nodes) == 3
    assert all(node.inputs[5:9] == nodes[0].inputs[5:9] for node in nodes)
    assert graph_making.operators(traced)["ReduceSum"] == 1
    assert not any(node.op_type == "CausalAttention" for node in traced.graph)


def test_nothing_to_do(traced: ir.Model) -> None:
    LowerAttentionGroupQuery()(traced)
    before = graph_making.operators(traced)
    assert not LowerAttentionGroupQuery()(traced).modified
    assert graph_making.operators(traced) == before
