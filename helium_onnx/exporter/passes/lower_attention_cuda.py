"""Lower attention to ``GroupQueryAttention`` whose lengths are inputs of the graph: the form of CUDA's graphs."""

from __future__ import annotations

import onnx_ir as ir

from helium_onnx.exporter.passes.lower_attention_group_query import replace_attention
from helium_onnx.exporter.passes.rewriting import nodes_of
from helium_onnx.modeling import DOMAIN


class LowerAttentionCuda(ir.passes.InPlacePass):
    """Pattern: ``helium_onnx::CausalAttention(q, k, v, past_key, past_value, attention_mask, cos, sin)``, all in one
    half-precision type.

    Replacement: ``com.microsoft::GroupQueryAttention(q, k, v, past_key, past_value, seqlens_k,
    total_sequence_length, cos, sin)`` with ``do_rotary=1`` (where q, k and v are the parts of one ``Split``, its input
    takes the place of q, and k and v are absent). The graph's inputs ``seqlens_k`` and ``total_sequence_length`` take
    the place of ``attention_mask``: computed in the graph, as LowerAttentionGroupQuery does, they would need nodes that
    run on the CPU, and a CUDA graph of the step could not be captured.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = nodes_of(model, DOMAIN, "CausalAttention")
        if not nodes:
            return ir.passes.PassResult(model, modified=False)
        seqlens_k = add_lengths(model.graph, "seqlens_k", ["batch_size"])
        total = add_lengths(model.graph, "total_sequence_length", [])
        for node in nodes:
            replace_attention(node, seqlens_k, total)
        drop_mask(model.graph)
        return ir.passes.PassResult(model, modified=True)


def add_lengths(graph: ir.Graph, name: str, dims: list[str]) -> ir.Value:
    """A new int32 input of ``graph``."""
    value = ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(ir.DataType.INT32))
    graph.inputs.append(value)
    return value


def drop_mask(graph: ir.Graph) -> None:
    """Remove the input ``attention_mask``, which attention alone has read."""
    for value in [value for value in graph.inputs if value.name == "attention_mask"]:
        assert not value.uses(), "attention_mask is read outside of attention"
        graph.inputs.remove(value)
