"""One ``GroupQueryAttention`` node over a cache of any type that its kernel takes."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from helium_onnx.exporter.passes.rewriting import MICROSOFT, Rewriter

#: What the kernel must be told to read an int8 cache. Source: ONNX Runtime 1.31.1, the operator's schema.
_INT8: dict[str, int | str] = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}


def kernel_type(attention: ir.Node) -> ir.DataType:
    """What the kernel of ``attention`` (a ``CausalAttention``) computes in: float16 over a float16 cache.

    Else it is what the graph computes in. The CPU kernel has float32 over float32 and int8, and float16 over float16:
    no float32 over float16. The CUDA kernel has float16 and bfloat16, each over itself and over int8.
    """
    past = attention.inputs[3]
    return ir.DataType.FLOAT16 if past is not None and past.dtype == ir.DataType.FLOAT16 else computed_type(attention)


def computed_type(attention: ir.Node) -> ir.DataType:
    """What the graph around ``attention`` computes in."""
    return attention.outputs[0].dtype or ir.DataType.FLOAT


def for_cache(rewriter: Rewriter, x: ir.Value, attention: ir.Node) -> ir.Value:
    """``x``, which the graph has computed, in the type that the kernel computes in."""
    kernel = kernel_type(attention)
    return x if kernel == computed_type(attention) else rewriter.op("Cast", x, to=int(kernel))


def group_query_attention(
    rewriter: Rewriter, attention: ir.Node, inputs: Sequence[ir.Value | None], **attributes: int
) -> None:
    """Replace ``attention`` (a ``CausalAttention``) by ``GroupQueryAttention(*inputs)`` of the same cache.

    ``inputs`` are the kernel's, from the query to at most ``attention_bias``, in the type of ``for_cache``. Scales of
    an int8 cache follow them, and the output goes back to the type of the graph.
    """
    scales, computed = attention.inputs[8:], computed_type(attention)
    named: dict[str, int | str] = {
        "num_heads": attention.attributes["num_heads"].as_int(),
        "kv_num_heads": attention.attributes["kv_num_heads"].as_int(),
        **attributes,
    }
    if scales:
        inputs = [*inputs, *[None] * (12 - len(inputs)), *scales]  # k_scale and v_scale are inputs 12 and 13
        named |= _INT8
    output, *present = rewriter.op_outputs("GroupQueryAttention", *inputs, outputs=3, domain=MICROSOFT, **named)
    if attention.inputs[3] is None and computed == ir.DataType.FLOAT:
        # Nobody reads what is kept for later. The CPU's kernel then keeps nothing; CUDA's, in half precision, asks for
        # a place all the same (1.31.1: "present_key and present_value are required").
        for value in present:
            value.name = ""  # absent, in ONNX's spelling
    if kernel_type(attention) != computed:
        output = rewriter.op("Cast", output, to=int(computed))
    rewriter.replace(output, *present)
