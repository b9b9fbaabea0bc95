"""Lower attention to ``GroupQueryAttention`` with rotary embedding inside: the form of prefill.onnx and decode.onnx."""

from __future__ import annotations

import onnx_ir as ir

from helium_onnx.exporter.passes.group_query import for_cache, group_query_attention
from helium_onnx.exporter.passes.rewriting import Rewriter, nodes_of
from helium_onnx.modeling import DOMAIN


class LowerAttentionGroupQuery(ir.passes.InPlacePass):
    """Pattern: ``helium_onnx::CausalAttention(q, k, v, past_key, past_value, attention_mask, cos, sin)``.

    Replacement: ``com.microsoft::GroupQueryAttention(q, k, v, past_key, past_value, seqlens_k,
    total_sequence_length, cos, sin)`` with ``do_rotary=1`` (where q, k and v are the parts of one ``Split``, its input
    takes the place of q, and k and v are absent), and once for all layers ``seqlens_k[b] =
    sum(attention_mask[b]) - 1`` and ``total_sequence_length = attention_mask.shape[1]``. Over a float16 cache the node
    is float16, between ``Cast``; over an int8 cache it takes the scales (StoreKeyValueCache) and stays float32.

    Rows hold their tokens without gaps from slot 0 and may be padded on the right; padding on the left is wrong here
    (LowerAttentionUniversal takes both). Past and present may be one buffer longer than the tokens in it.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = nodes_of(model, DOMAIN, "CausalAttention")
        if not nodes:
            return ir.passes.PassResult(model, modified=False)
        first = Rewriter(next(iter(model.graph)))
        mask = nodes[0].inputs[5]
        count = first.op("ReduceSum", mask, first.constant([1]), keepdims=0)
        seqlens_k = first.op("Cast", first.op("Sub", count, first.constant(1)), to=int(ir.DataType.INT32))
        total = first.op("Squeeze", first.op("Shape", mask, start=1, end=2), first.constant([0]))
        total = first.op("Cast", total, to=int(ir.DataType.INT32))
        for node in nodes:
            replace_attention(node, seqlens_k, total)
        return ir.passes.PassResult(model, modified=True)


def replace_attention(node: ir.Node, seqlens_k: ir.Value, total: ir.Value) -> None:
    """Put GroupQueryAttention in the place of a CausalAttention, over the product that its Split parts where it can."""
    rewriter = Rewriter(node)
    query, key, value, past_key, past_value, _, cos, sin, *_ = node.inputs
    split = packed_split(node)
    if split is not None:
        query, key, value = split.inputs[0], None, None
    query, key, value = (x and for_cache(rewriter, x, node) for x in (query, key, value))
    graph = node.graph
    group_query_attention(
        rewriter,
        node,
        (query, key, value, past_key, past_value, seqlens_k, total, cos, sin),
        do_rotary=1,
        rotary_interleaved=node.attributes["interleaved"].as_int(),
    )
    if split is not None:
        assert isinstance(graph, ir.Graph)
        remove_split(graph, split)


def packed_split(attention: ir.Node) -> ir.Node | None:
    """The Split whose three parts are query, key and value, and nothing else reads."""
    split = attention.inputs[0].producer() if attention.inputs[0] is not None else None
    if split is None or split.op_type != "Split" or tuple(split.outputs) != tuple(attention.inputs[:3]):
        return None
    return split if all(len(part.uses()) == 1 for part in split.outputs) else None


def remove_split(graph: ir.Graph, split: ir.Node) -> None:
    """Remove a Split that nothing reads any more, and the constant of its sizes."""
    sizes = split.inputs[1]
    graph.remove(split, safe=True)
    if sizes is not None and (constant := sizes.producer()) is not None and not sizes.uses():
        graph.remove(constant, safe=True)
