"""Lower attention to plain operators over fixed shapes: the form of compilers that know no attention, as CoreML's."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from helium_onnx.exporter.passes.lower_attention_static import window_inputs
from helium_onnx.exporter.passes.rewriting import Rewriter, nodes_of
from helium_onnx.modeling import DOMAIN


class LowerAttentionStaticStandard(ir.passes.InPlacePass):
    """Pattern: ``helium_onnx::CausalAttention(q, k, v, past_key, past_value, attention_mask, cos, sin)``.

    Replacement: the inputs and outputs of LowerAttentionStatic, by ``MatMul``, ``Add``, ``Mul``, ``Softmax`` and moves
    of at most four dimensions. A rotation is ``x * cos + (x @ P) * sin``: P is a matrix of 0, 1 and -1 that swaps the
    two of each pair, so the product is exact in any precision, and no pair is cut out and put back. q takes its cosines
    and sines divided by the root of the head's size: products of q and k are then as small as scores, which float16
    holds. Query heads of a group are rows of one product with their key/value head, which is never repeated.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = nodes_of(model, DOMAIN, "CausalAttention")
        if not nodes:
            return ir.passes.PassResult(model, modified=False)
        size, interleaved = nodes[0].attributes["head_dim"].as_int(), bool(nodes[0].attributes["interleaved"].as_int())
        query, cos, sin = nodes[0].inputs[0], *nodes[0].inputs[6:8]
        assert query is not None and query.dtype is not None, "the type of the activations is not known"
        compute = query.dtype
        with window_inputs(model, nodes[0]) as (position_ids, mask):
            shared = Rewriter(next(iter(model.graph)))
            spread = shared.constant(_spread(size, interleaved), compute)
            axis, scale = shared.constant([1]), shared.constant(1 / math.sqrt(size), compute)
            for_key = []
            for table in (cos, sin):
                rows = shared.op("Unsqueeze", shared.op("Gather", table, position_ids, axis=0), axis)
                for_key.append(shared.op("MatMul", rows, spread))
            for_query = [shared.op("Mul", rows, scale) for rows in for_key]
            swap = shared.constant(_swap(size, interleaved), compute)
            for node in nodes:
                _lower(node, for_query, for_key, swap, mask)
        return ir.passes.PassResult(model, modified=True)


def _pairs(size: int, interleaved: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the first and the second of each pair stand in a head (see ``modeling.rotate``)."""
    first = np.arange(size // 2)
    return (2 * first, 2 * first + 1) if interleaved else (first, first + size // 2)


def _spread(size: int, interleaved: bool) -> NDArray[np.float32]:
    """``[size / 2, size]``: a row of angles times this has each angle at both places of its pair."""
    matrix = np.zeros((size // 2, size), np.float32)
    for places in _pairs(size, interleaved):
        matrix[np.arange(size // 2), places] = 1
    return matrix


def _swap(size: int, interleaved: bool) -> NDArray[np.float32]:
    """``[size, size]``: a head times this has minus the second of each pair for the first, and the first for the
    second.
    """
    matrix = np.zeros((size, size), np.float32)
    first, second = _pairs(size, interleaved)
    matrix[second, first], matrix[first, second] = -1, 1
    return matrix


def _lower(node: ir.Node, for_query: list[ir.Value], for_key: list[ir.Value], swap: ir.Value, mask: ir.Value) -> None:
    rewriter = Rewriter(node)
    query, key, value, past_key, past_value, *_ = node.inputs
    heads, groups = node.attributes["num_heads"].as_int(), node.attributes["kv_num_heads"].as_int()
    size = node.attributes["head_dim"].as_int()

    def reshaped(x: ir.Value, *shape: int) -> ir.Value:
        return rewriter.op("Reshape", x, rewriter.constant(list(shape)))

    def split(x: ir.Value | None, count: int) -> ir.Value:
        assert x is not None
        return rewriter.op("Transpose", reshaped(x, 0, 0, count, size), perm=[0, 2, 1, 3])

    def rotated(x: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
        swapped = rewriter.op("MatMul", x, swap)
        return rewriter.op("Add", rewriter.op("Mul", x, cos), rewriter.op("Mul", swapped, sin))

    def grouped(x: ir.Value, last: int) -> ir.Value:
        """``[1, heads, tokens, .]`` as ``[1, groups, heads of the group and tokens, .]``."""
        return x if heads == groups else reshaped(x, 0, groups, -1, last)

    def single(x: ir.Value, last: int) -> ir.Value:
        return x if heads == groups else reshaped(x, 0, heads, -1, last)

    q, k, v = rotated(split(query, heads), *for_query), rotated(split(key, groups), *for_key), split(value, groups)
    keys, values = rewriter.op("Concat", past_key, k, axis=2), rewriter.op("Concat", past_value, v, axis=2)
    products = rewriter.op("MatMul", grouped(q, size), rewriter.op("Transpose", keys, perm=[0, 1, 3, 2]))
    # A 0 keeps the size that stands there: of past and new tokens.
    weights = rewriter.op("Softmax", rewriter.op("Add", single(products, 0), mask), axis=-1)
    mixed = single(rewriter.op("MatMul", grouped(weights, 0), values), size)
    rewriter.replace(reshaped(rewriter.op("Transpose", mixed, perm=[0, 2, 1, 3]), 0, 0, heads * size), k, v)
