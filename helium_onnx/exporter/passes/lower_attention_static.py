"""Lower attention to the operators of set 23 over fixed shapes: the form of NPUs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import onnx_ir as ir

from helium_onnx.exporter.passes.lower_attention_cuda import drop_mask
from helium_onnx.exporter.passes.rewriting import Rewriter, nodes_of
from helium_onnx.modeling import DOMAIN


class LowerAttentionStatic(ir.passes.InPlacePass):
    """Pattern: ``helium_onnx::CausalAttention(q, k, v, past_key, past_value, attention_mask, cos, sin)``.

    Replacement: ``RotaryEmbedding(x, cos, sin, position_ids)`` on the heads of q and k, then ``Attention(q,
    Concat(past_key, k), Concat(past_value, v), attention_mask)``. ``position_ids`` int64 ``[batch_size,
    sequence_length]`` becomes an input of the graph, and ``attention_mask`` another one: what is added to the scores,
    in the type of q, ``[batch_size, 1, sequence_length, total_sequence_length]``. What depends on a length lies in
    these two, so no shape does.

    Presents are the new keys and values alone. The past is then read only, and of one size in prefill and decode: a
    runtime keeps one buffer of the whole context for both, writes what is new behind the last token, drops what padding
    gave, and moves nothing when a token comes. With ``Attention``'s own past and present, the whole context would be
    written at each token, and the two graphs' pasts would differ in size.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = nodes_of(model, DOMAIN, "CausalAttention")
        if not nodes:
            return ir.passes.PassResult(model, modified=False)
        with window_inputs(model, nodes[0]) as (position_ids, mask):
            for node in nodes:
                _lower(node, position_ids, mask)
        return ir.passes.PassResult(model, modified=True)


@contextlib.contextmanager
def window_inputs(model: ir.Model, attention: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """``position_ids`` and the mask that is added to the scores, as inputs of the graph. On leaving, when nothing reads
    the mask of tokens any more, the new one takes its name.
    """
    query = attention.inputs[0]
    assert query is not None and query.dtype is not None, "the type of the activations is not known"
    mask = _input(model.graph, "additive", query.dtype, ("batch_size", 1, "sequence_length", "total_sequence_length"))
    yield _input(model.graph, "position_ids", ir.DataType.INT64, ("batch_size", "sequence_length")), mask
    drop_mask(model.graph)
    mask.name = "attention_mask"


def _input(graph: ir.Graph, name: str, dtype: ir.DataType, dims: tuple[str | int, ...]) -> ir.Value:
    value = ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(dtype))
    graph.inputs.append(value)
    return value


def _lower(node: ir.Node, position_ids: ir.Value, mask: ir.Value) -> None:
    rewriter = Rewriter(node)
    query, key, value, past_key, past_value, _, cos, sin = node.inputs
    heads, groups = node.attributes["num_heads"].as_int(), node.attributes["kv_num_heads"].as_int()
    size, interleaved = node.attributes["head_dim"].as_int(), node.attributes["interleaved"].as_int()

    def split(x: ir.Value | None, count: int) -> ir.Value:
        shape = rewriter.constant([0, 0, count, size])
        return rewriter.op("Transpose", rewriter.op("Reshape", x, shape), perm=[0, 2, 1, 3])

    def rotated(x: ir.Value) -> ir.Value:
        return rewriter.op("RotaryEmbedding", x, cos, sin, position_ids, interleaved=interleaved)

    q, k, v = rotated(split(query, heads)), rotated(split(key, groups)), split(value, groups)
    keys, values = rewriter.op("Concat", past_key, k, axis=2), rewriter.op("Concat", past_value, v, axis=2)
    mixed = rewriter.op("Transpose", rewriter.op("Attention", q, keys, values, mask), perm=[0, 2, 1, 3])
    joined = rewriter.op("Reshape", mixed, rewriter.constant([0, 0, heads * size]))
    rewriter.replace(joined, k, v)
