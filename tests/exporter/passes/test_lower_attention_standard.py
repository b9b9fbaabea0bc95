"""LowerAttentionStandard: standard operators alone, exact under padding on either side."""

from __future__ import annotations

import graph_making
import numpy as np
import onnx_ir as ir
import pytest

from helium_onnx.exporter.passes.lower_attention_standard import LowerAttentionStandard

CASES = {
    "prefill": (0, 6, [[1] * 6]),
    "left padding": (0, 6, [[1] * 6, [0] * 4 + [1] * 2]),
    "right padding": (0, 6, [[1] * 6, [1] * 4 + [0] * 2]),
    "a row of padding alone": (0, 6, [[1] * 6, [0] * 6]),
    "decode after left padding": (5, 1, [[1] * 6, [0] * 3 + [1] * 3]),
    "decode after a gap": (5, 1, [[1] * 6, [1, 1, 0, 0, 0, 1]]),
    "chunk": (5, 3, [[1] * 8]),
}


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("model_type", ["helium", "llama"])
@pytest.mark.parametrize("case", CASES)
def test_numbers(case: str, model_type: str, kv_heads: int) -> None:
    past, new, mask = CASES[case]
    sizes = graph_making.config(model_type, num_key_value_heads=kv_heads)
    model = graph_making.attention(sizes)
    assert LowerAttentionStandard()(model).modified
    feed = graph_making.attention_feed(sizes, past, new, mask)
    real = np.array(mask)[:, past:] == 1
    found, expected = graph_making.run(model, feed), graph_making.attention_eagerly(sizes, feed)
    assert all(np.isfinite(array).all() for array in found)
    np.testing.assert_allclose(found[0][real], expected[0][real], atol=2e-6)
    for have, want in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(have, want, atol=2e-6)


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
