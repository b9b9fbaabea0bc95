"""Lower attention to the operator of our own CUDA kernels."""

from __future__ import annotations

import onnx_ir as ir

from helium_onnx.exporter.passes.lower_attention_cuda import add_lengths, drop_mask
from helium_onnx.exporter.passes.lower_attention_group_query import remove_split
from helium_onnx.exporter.passes.lower_attention_native import common_split
from helium_onnx.exporter.passes.rewriting import KERNELS, Rewriter, nodes_of
from helium_onnx.modeling import DOMAIN


class LowerAttentionDevice(ir.passes.InPlacePass):
    """Pattern: ``helium_onnx::CausalAttention(q, k, v, past_key, past_value, attention_mask, cos, sin)``.

    Replacement: ``helium_onnx.kernels::DeviceAttention(qkv, past_key, past_value, seqlens_k, cos, sin)`` for one new
    token a row, with ``qkv`` and the output in float32. ``qkv`` is the input of the ``Split`` that made q, k and v, or
    their ``Concat``, which LowerLinearDevice makes part of the projections. The graph's input ``seqlens_k`` takes the
    place of ``attention_mask``. Over an int8 cache the node is ``DeviceAttentionInt8``, and the scales of keys and of
    values follow its other inputs.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = nodes_of(model, DOMAIN, "CausalAttention")
        if not nodes:
            return ir.passes.PassResult(model, modified=False)
        seqlens_k = add_lengths(model.graph, "seqlens_k", ["batch_size"])
        for node in nodes:
            rewriter = Rewriter(node)
            *projections, past_key, past_value, _, cos, sin = node.inputs[:8]
            scales = node.inputs[8:]
            split = common_split(projections)
            packed = rewriter.op("Concat", *projections, axis=-1) if split is None else split.inputs[0]
            sizes = {name: node.attributes[name].as_int() for name in ("num_heads", "kv_num_heads", "head_dim")}
            output, *present = rewriter.op_outputs(
                "DeviceAttentionInt8" if scales else "DeviceAttention",
                packed, past_key, past_value, seqlens_k, cos, sin, *scales,
                outputs=3,
                domain=KERNELS,
                **sizes,
                interleaved=node.attributes["interleaved"].as_int(),
            )  # fmt: skip
            output.type = ir.TensorType(ir.DataType.FLOAT)
            output.shape = ir.Shape(["batch_size", 1, sizes["num_heads"] * sizes["head_dim"]])
            rewriter.replace(output, *present)
            if split is not None:
                remove_split(model.graph, split)
        drop_mask(model.graph)
        return ir.passes.PassResult(model, modified=True)
