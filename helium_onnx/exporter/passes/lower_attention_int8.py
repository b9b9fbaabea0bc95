"""Lower attention over whole texts to the operator of our own kernels that computes in 8 bits."""

from __future__ import annotations

import onnx_ir as ir

from helium_onnx.exporter.passes.lower_attention_group_query import remove_split
from helium_onnx.exporter.passes.lower_attention_native import common_split, remove_mask
from helium_onnx.exporter.passes.rewriting import KERNELS, Rewriter, nodes_of
from helium_onnx.modeling import DOMAIN


class LowerAttentionInt8(ir.passes.InPlacePass):
    """Pattern: ``helium_onnx::CausalAttention(q, k, v, None, None, attention_mask, cos, sin)``: without a past.

    Replacement: ``helium_onnx.kernels::CausalAttentionInt8(qkv, cos, sin)``, whose queries, keys, values and their
    shares are rounded to 8 bits as activations are elsewhere. ``qkv`` is as in LowerAttentionNative. Rows are padded on
    the right, where no token of theirs looks, and ``attention_mask`` goes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = nodes_of(model, DOMAIN, "CausalAttention")
        for node in nodes:
            assert node.inputs[3] is None, "a graph with a past"
            rewriter = Rewriter(node)
            *projections, _, _, _, cos, sin = node.inputs[:8]
            split = common_split(projections)
            packed = rewriter.op("Concat", *projections, axis=-1) if split is None else split.inputs[0]
            names = ("num_heads", "kv_num_heads", "head_dim", "interleaved")
            attended = rewriter.op(
                "CausalAttentionInt8", packed, cos, sin, domain=KERNELS,
                **{name: node.attributes[name].as_int() for name in names},
            )  # fmt: skip
            rewriter.replace(attended, *node.outputs[1:])  # nobody reads presents
            if split is not None:
                remove_split(model.graph, split)
        if nodes:
            remove_mask(model.graph)
        return ir.passes.PassResult(model, modified=bool(nodes))
