"""LowerAttentionStandard: standard operators alone, exact under padding on either side."""

from __future__ import annotations

import graph_making
import onnx_ir as ir
import pytest

from helium_onnx.exporter.passes.lower_attention_standard import LowerAttentionStandard


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("model_type", ["helium", "llama"])
@pytest.mark.parametrize("case", graph_making.EITHER_PADDING)
def test_numbers(case: str, model_type: str, kv_heads: int) -> None:
    sizes = graph_making.config(model_type, num_key_value_heads=kv_heads)
    graph_making.assert_exact_under_padding(LowerAttentionStandard(), case, sizes)


def test_standard_operators_alone(traced: ir.Model) -> None:
    assert LowerAttentionStandard()(traced).modified
    assert {node.domain for node in traced.graph} == {"", "helium_onnx"}  # the norms are another pass's
    counts = graph_making.operators(traced)
    assert counts["Softmax"] == 3
    assert counts["CumSum"] == 1
    assert not any(node.op_type == "CausalAttention" for node in traced.graph)


@pytest.mark.parametrize(("kv_heads", "expands"), [(4, 0), (2, 2)])
def test_equal_heads_are_not_expanded(kv_heads: int, expands: int) -> None:
    model = graph_making.attention(graph_making.config(num_key_value_heads=kv_heads))
    LowerAttentionStandard()(model)
    assert graph_making.operators(model)["Expand"] == expands


def test_nothing_to_do(traced: ir.Model) -> None:
    LowerAttentionStandard()(traced)
    assert not LowerAttentionStandard()(traced).modified
