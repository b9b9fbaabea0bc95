"""LowerAttentionInt8: one node a layer, without past, present and mask."""

from __future__ import annotations

import graph_making
import onnx_ir as ir
import pytest

from helium_onnx.exporter.passes.lower_attention_int8 import LowerAttentionInt8
from helium_onnx.exporter.passes.pack_query_key_value import PackQueryKeyValue
from helium_onnx.exporter.passes.rewriting import KERNELS
from helium_onnx.exporter.trace import trace
from helium_onnx.recipe import MatrixSettings, Quantization


@pytest.fixture
def texts() -> ir.Model:
    return trace(graph_making.config("helium", architectures=["HeliumModel"], num_hidden_layers=3))


def test_one_node_a_layer(texts: ir.Model) -> None:
    assert LowerAttentionInt8()(texts).modified
    assert [value.name for value in texts.graph.inputs] == ["input_ids"]
    nodes = [node for node in texts.graph if node.op_type == "CausalAttentionInt8"]
    assert [(node.domain, len(node.inputs), len(node.outputs)) for node in nodes] == [(KERNELS, 3, 1)] * 3
    attributes = {name: value.as_int() for name, value in nodes[0].attributes.items()}
    assert attributes == {"num_heads": 4, "kv_num_heads": 2, "head_dim": 16, "interleaved": 1}
    assert graph_making.operators(texts)["Concat"] == 3


def test_a_packed_product_is_taken_without_a_split(texts: ir.Model) -> None:
    PackQueryKeyValue(Quantization("round-to-nearest", linear=MatrixSettings(8, 16)))(texts)
    LowerAttentionInt8()(texts)
    counts = graph_making.operators(texts)
    assert counts["Split"] == counts["Concat"] == 0


def test_nothing_to_do(texts: ir.Model) -> None:
    LowerAttentionInt8()(texts)
    assert not LowerAttentionInt8()(texts).modified


def test_a_graph_with_a_past_is_no_place_for_it(traced: ir.Model) -> None:
    with pytest.raises(AssertionError, match="with a past"):
        LowerAttentionInt8()(traced)
