"""Lower attention to standard operators, for runtimes that know nothing of ``com.microsoft``."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from helium_onnx.exporter.passes.lower_attention_universal import position_ids
from helium_onnx.exporter.passes.rewriting import Rewriter, nodes_of
from helium_onnx.modeling import DOMAIN


class LowerAttentionStandard(ir.passes.InPlacePass):
    """Pattern: ``helium_onnx::CausalAttention(q, k, v, past_key, past_value, attention_mask, cos, sin)``.

    Replacement: what ``modeling.causal_attention`` computes, node by node: split heads, rotate at positions counted
    from the mask, ``Concat`` with the past (where there is one), ``MatMul``, mask, ``Softmax``, ``MatMul``, join heads.
    Exact under left and right padding. Present is a new tensor, one step longer than past: past and present cannot
    share a buffer.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = nodes_of(model, DOMAIN, "CausalAttention")
        if not nodes:
            return ir.passes.PassResult(model, modified=False)
        mask = nodes[0].inputs[5]
        cos, sin = nodes[0].inputs[6:8]
        shared = Rewriter(next(iter(model.graph)))
        input_ids = next(value for value in model.graph.inputs if value.name == "input_ids")
        positions = position_ids(shared, mask, input_ids)
        axis = shared.constant([1])
        rows = [shared.op("Unsqueeze", shared.op("Gather", table, positions, axis=0), axis) for table in (cos, sin)]
        allowed = _allowed(shared, mask, input_ids)
        for node in nodes:
            _lower(node, rows[0], rows[1], allowed)
        return ir.passes.PassResult(model, modified=True)


def _allowed(rewriter: Rewriter, mask: ir.Value | None, input_ids: ir.Value) -> ir.Value:
    """``[batch_size, 1, sequence_length, total_sequence_length]`` bool: causal, and no padded key."""
    zero, one = rewriter.constant(0), rewriter.constant(1)
    total = rewriter.op("Squeeze", rewriter.op("Shape", mask, start=1, end=2), rewriter.constant([0]))
    length = rewriter.op("Squeeze", rewriter.op("Shape", input_ids, start=1, end=2), rewriter.constant([0]))
    keys = rewriter.op("Range", zero, total, one)
    new = rewriter.op("Range", rewriter.op("Sub", total, length), total, one)
    causal = rewriter.op("LessOrEqual", keys, rewriter.op("Unsqueeze", new, rewriter.constant([1])))
    real = rewriter.op("Unsqueeze", rewriter.op("Greater", mask, zero), rewriter.constant([1, 2]))
    return rewriter.op("And", causal, real)


def _lower(node: ir.Node, cos: ir.Value, sin: ir.Value, allowed: ir.Value) -> None:
    rewriter = Rewriter(node)
    query, key, value, past_key, past_value, *_ = node.inputs
    assert query is not None
    compute = query.dtype or ir.DataType.FLOAT
    heads, groups = node.attributes["num_heads"].as_int(), node.attributes["kv_num_heads"].as_int()
    size, interleaved = node.attributes["head_dim"].as_int(), bool(node.attributes["interleaved"].as_int())

    def split(x: ir.Value | None, count: int) -> ir.Value:
        shape = rewriter.constant([0, 0, count, size])
        return rewriter.op("Transpose", rewriter.op("Reshape", x, shape), perm=[0, 2, 1, 3])

    def repeated(x: ir.Value) -> ir.Value:
        """Each key/value head once for every query head of its group."""
        if heads == groups:
            return x
        tiled = rewriter.op("Unsqueeze", x, rewriter.constant([2]))
        tiled = rewriter.op("Expand", tiled, rewriter.constant([1, 1, heads // groups, 1, 1]))
        return rewriter.op("Reshape", tiled, rewriter.constant([0, heads, -1, size]))

    q = _rotate(rewriter, split(query, heads), cos, sin, heads, size, interleaved)
    k = _rotate(rewriter, split(key, groups), cos, sin, groups, size, interleaved)
    v = split(value, groups)
    present_key = k if past_key is None else rewriter.op("Concat", past_key, k, axis=2)
    present_value = v if past_value is None else rewriter.op("Concat", past_value, v, axis=2)
    # q is scaled, and not the scores: in float16 these would overflow first.
    scaled = rewriter.op("Mul", q, rewriter.constant(1.0 / math.sqrt(size), compute))
    scores = rewriter.op("MatMul", scaled, rewriter.op("Transpose", repeated(present_key), perm=[0, 1, 3, 2]))
    masked = rewriter.constant(float(np.finfo(compute.numpy()).min), compute)
    scores = rewriter.op("Where", allowed, scores, masked)
    mixed = rewriter.op("MatMul", rewriter.op("Softmax", scores, axis=-1), repeated(present_value))
    joined = rewriter.op(
        "Reshape", rewriter.op("Transpose", mixed, perm=[0, 2, 1, 3]), rewriter.constant([0, 0, heads * size])
    )
    rewriter.replace(joined, present_key, present_value)


def _rotate(
    rewriter: Rewriter, x: ir.Value, cos: ir.Value, sin: ir.Value, heads: int, size: int, interleaved: bool
) -> ir.Value:
    """The graph's form of ``modeling.rotate``: pairs are neighbours (Helium) or halves (Llama)."""
    # [batch, heads, sequence, pairs, 2] or [batch, heads, sequence, 2, pairs]
    pairs, axis = ([size // 2, 2], 4) if interleaved else ([2, size // 2], 3)
    folded = rewriter.op("Reshape", x, rewriter.constant([0, heads, -1, *pairs]))
    first = rewriter.op("Gather", folded, rewriter.constant(0), axis=axis)
    second = rewriter.op("Gather", folded, rewriter.constant(1), axis=axis)
    one = rewriter.op("Sub", rewriter.op("Mul", first, cos), rewriter.op("Mul", second, sin))
    two = rewriter.op("Add", rewriter.op("Mul", second, cos), rewriter.op("Mul", first, sin))
    where = rewriter.constant([axis])
    stacked = rewriter.op(
        "Concat", rewriter.op("Unsqueeze", one, where), rewriter.op("Unsqueeze", two, where), axis=axis
    )
    return rewriter.op("Reshape", stacked, rewriter.constant([0, heads, -1, size]))
