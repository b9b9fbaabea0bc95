"""LowerAttentionNative: one node a layer over a buffer and the tokens in it, whose numbers are modeling's."""

from __future__ import annotations

import graph_making
import kernel_graphs
import numpy as np
import onnx_ir as ir
import pytest

from helium_onnx.exporter.passes.lower_attention_native import LowerAttentionNative
from helium_onnx.exporter.passes.pack_query_key_value import PackQueryKeyValue
from helium_onnx.exporter.passes.rewriting import KERNELS
from helium_onnx.modeling import DOMAIN
from helium_onnx.recipe import MatrixSettings, Quantization

#: What comes out is run over our own kernels.
runs = pytest.mark.usefixtures("native_kernels")
ATTENTION = f"{KERNELS}.CausalAttentionFloat16"
#: Keys and values are kept in float16: each is off by at most 2^-11 of itself.
TOLERANCE = 2e-3
CAPACITY = 20


@runs
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("model_type", ["helium", "llama"])
@pytest.mark.parametrize(("past", "new"), [(0, 6), (5, 1), (5, 3)])
def test_numbers(past: int, new: int, model_type: str, kv_heads: int) -> None:
    sizes = graph_making.config(model_type, num_key_value_heads=kv_heads)
    model = graph_making.attention(sizes)
    assert LowerAttentionNative()(model).modified
    assert graph_making.operators(model) == {"Concat": 1, ATTENTION: 1}
    feed = graph_making.attention_feed(sizes, past, new, [[1] * (past + new)] * 2)
    expected = graph_making.attention_eagerly(sizes, feed)
    for name in ("past_key", "past_value"):
        buffer = np.full((2, kv_heads, CAPACITY, sizes.head_dim), np.nan, np.float16)
        buffer[:, :, :past] = feed[name]
        feed[name] = buffer
    feed["past_lengths"] = np.array([past, past])
    names = [value.name for value in model.graph.inputs]
    del model.graph.opset_imports[DOMAIN]
    model.graph.opset_imports[KERNELS] = 1
    session = kernel_graphs.session(ir.serde.serialize_model(model).SerializeToString())
    output, *present = session.run(None, {name: feed[name] for name in names})
    np.testing.assert_allclose(output, expected[0], atol=TOLERANCE)
    for have, want in zip(present, expected[1:], strict=True):
        np.testing.assert_allclose(have[:, :, : past + new], want, rtol=2**-11, atol=1e-6)


def test_inputs_and_types(traced: ir.Model) -> None:
    """The lengths take the mask's place; past and present are float16, whatever the trace has."""
    assert LowerAttentionNative()(traced).modified
    names = [value.name for value in traced.graph.inputs]
    assert names.count("past_lengths") == 1
    assert "attention_mask" not in names
    layered = [
        v
        for v in (*traced.graph.inputs, *traced.graph.outputs)
        if v.name and ("past_k" in v.name or "present" in v.name)
    ]
    assert len(layered) == 3 * 4
    assert {value.dtype for value in layered} == {ir.DataType.FLOAT16}


def test_all_layers_share_the_lengths(traced: ir.Model) -> None:
    LowerAttentionNative()(traced)
    nodes = [node for node in traced.graph if node.op_type == "CausalAttentionFloat16"]
    assert len(nodes) == 3
    assert len({node.inputs[3] for node in nodes}) == 1
    assert all(node.inputs[4:6] == nodes[0].inputs[4:6] for node in nodes)
    assert [node.attributes["interleaved"].as_int() for node in nodes] == [1] * 3
    assert graph_making.operators(traced)["Concat"] == 3
    assert not any(node.op_type == "CausalAttention" for node in traced.graph)


def test_a_packed_product_is_taken_without_a_split(traced: ir.Model) -> None:
    PackQueryKeyValue(Quantization("round-to-nearest", linear=MatrixSettings(8, 16)))(traced)
    assert graph_making.operators(traced)["Split"] == 3
    constants = graph_making.operators(traced)["Constant"]
    LowerAttentionNative()(traced)
    counts = graph_making.operators(traced)
    assert counts["Split"] == counts["Concat"] == 0
    assert counts["Constant"] <= constants - 3  # the sizes of its parts
    attention = [node for node in traced.graph if node.op_type == "CausalAttentionFloat16"]
    assert [node.inputs[0].producer().op_type for node in attention] == ["MatMul"] * 3  # type: ignore[union-attr]


def test_nothing_to_do(traced: ir.Model) -> None:
    LowerAttentionNative()(traced)
    before = graph_making.operators(traced)
    assert not LowerAttentionNative()(traced).modified
    assert graph_making.operators(traced) == before
