"""Lower attention to a form that is exact under left and right padding: that of model.onnx, for other clients."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from helium_onnx.exporter.passes.group_query import computed_type, for_cache, group_query_attention, kernel_type
from helium_onnx.exporter.passes.rewriting import MICROSOFT, Rewriter, nodes_of
from helium_onnx.modeling import DOMAIN

#: Added to the score of a padded key, by the kernel's type. In float32 the least number, as transformers does. Not
#: -inf, which would make NaN of a row that is padding throughout. In half precision half of the least, so that its sum
#: with a score does not become -inf.
_MASKED = {
    ir.DataType.FLOAT: float(np.finfo(np.float32).min),
    ir.DataType.FLOAT16: float(np.finfo(np.float16).min) / 2,
    ir.DataType.BFLOAT16: torch.finfo(torch.bfloat16).min / 2,
}


class LowerAttentionUniversal(ir.passes.InPlacePass):
    """Pattern: ``helium_onnx::CausalAttention(q, k, v, past_key, past_value, attention_mask, cos, sin)``.

    Replacement: ``com.microsoft::RotaryEmbedding`` on q and k at positions counted from the mask, then
    ``GroupQueryAttention`` with ``do_rotary=0``, every row at its full length (``seqlens_k = total - 1``) and an
    ``attention_bias`` that hides padded keys. ``GroupQueryAttention`` alone takes a row's tokens to start at slot 0,
    and is silently wrong on the left-padded rows that optimum and transformers.js send.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = nodes_of(model, DOMAIN, "CausalAttention")
        if not nodes:
            return ir.passes.PassResult(model, modified=False)
        mask = nodes[0].inputs[5]
        shared = Rewriter(next(iter(model.graph)))
        input_ids = next(value for value in model.graph.inputs if value.name == "input_ids")
        positions = position_ids(shared, mask, input_ids)

        batch = shared.op("Shape", mask, start=0, end=1)
        total = shared.op("Shape", mask, start=1, end=2)
        total_scalar = shared.op("Cast", shared.op("Squeeze", total, shared.constant([0])), to=int(ir.DataType.INT32))
        length_minus_one = shared.op("Sub", total_scalar, shared.constant(1, ir.DataType.INT32))
        seqlens_k = shared.op("Expand", length_minus_one, batch)

        hidden = shared.op("Equal", mask, shared.constant(0))
        masked, computed = _MASKED[kernel_type(nodes[0])], computed_type(nodes[0])
        bias = shared.op("Where", hidden, shared.constant(masked, computed), shared.constant(0.0, computed))
        bias = for_cache(shared, bias, nodes[0])
        bias = shared.op("Unsqueeze", bias, shared.constant([1, 2]))  # [batch, 1, 1, total]
        length = shared.op("Shape", input_ids, start=1, end=2)
        one = shared.constant([1])
        bias = shared.op("Expand", bias, shared.op("Concat", batch, one, length, total, axis=0))

        for node in nodes:
            rewriter = Rewriter(node)
            query, key, value, past_key, past_value, _, cos, sin, *_ = node.inputs
            query, key, value = (x and for_cache(rewriter, x, node) for x in (query, key, value))
            interleaved = node.attributes["interleaved"].as_int()
            query, key = (
                rewriter.op(
                    "RotaryEmbedding", x, positions, cos, sin, domain=MICROSOFT, interleaved=interleaved, num_heads=0
                )
                for x in (query, key)
            )
            inputs = (query, key, value, past_key, past_value, seqlens_k, total_scalar, None, None, None, bias)
            group_query_attention(rewriter, node, inputs, do_rotary=0)
        return ir.passes.PassResult(model, modified=True)


def position_ids(rewriter: Rewriter, mask: ir.Value | None, input_ids: ir.Value) -> ir.Value:
    """Nodes that count each new token's position from the mask: ``[batch_size, sequence_length]`` int64.

    The graph's form of ``modeling.positions_from_mask``: padding does not count, and gets position 0.
    """
    counted = rewriter.op("CumSum", mask, rewriter.constant(1))
    positions = rewriter.op("Max", rewriter.op("Sub", counted, rewriter.constant(1)), rewriter.constant(0))
    length = rewriter.op("Shape", input_ids, start=1, end=2)
    return rewriter.op(
        "Slice",
        positions,
        rewriter.op("Neg", length),
        rewriter.constant([2**62]),
        rewriter.constant([1]),
    )
