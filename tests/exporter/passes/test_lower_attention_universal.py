"""LowerAttentionUniversal: exact under padding on either side."""

from __future__ import annotations

import graph_making
import onnx_ir as ir
import pytest

from helium_onnx.exporter.passes.lower_attention_universal import LowerAttentionUniversal


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("model_type", ["helium", "llama"])
@pytest.mark.parametrize("case", graph_making.EITHER_PADDING)
def test_numbers(case: str, model_type: str, kv_heads: int) -> None:
    sizes = graph_making.config(model_type, num_key_value_heads=kv_heads)
    graph_making.assert_exact_under_padding(LowerAttentionUniversal(), case, sizes)


def test_positions_and_bias_are_made_once(traced: ir.Model) -> None:
    assert LowerAttentionUniversal()(traced).modified
    counts = graph_making.operators(traced)
    assert counts["com.microsoft.GroupQueryAttention"] == 3
    assert counts["com.microsoft.RotaryEmbedding"] == 6
    assert counts["CumSum"] == counts["Where"] == 1
    assert not any(node.op_type == "CausalAttention" for node in traced.graph)


def test_nothing_to_do(traced: ir.Model) -> None:
    LowerAttentionUniversal()(traced)
    assert not LowerAttentionUniversal()(traced).modified
