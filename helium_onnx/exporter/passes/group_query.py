"""One ``GroupQueryAttention`` node over a cache of any type that its CPU kernel takes."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from helium_onnx.exporter.passes.rewriting import MICROSOFT, Rewriter

#: What the kernel must be told to read an int8 cache. Source: ONNX Runtime 1.31.1, the operator's schema.
_INT8: dict[str, int | str] = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}


def for_cache(rewriter: Rewriter, x: ir.Value, past: ir.Value | None) -> ir.Value:
    """``x`` in the type that the kernel computes in: float16 beside a float16 cache, float32 else.

    The CPU kernel has float32 over float32 and int8, and float16 over float16: no float32 over float16.
    """
    narrow = past is not None and past.dtype == ir.DataType.FLOAT16
    return rewriter.op("Cast", x, to=int(ir.DataType.FLOAT16)) if narrow else x


def group_query_attention(
    rewriter: Rewriter, attention: ir.Node, inputs: Sequence[ir.Value | None], **attributes: int
) -> None:
    """Replace ``attention`` (a ``CausalAttention``) by ``GroupQueryAttention(*inputs)`` of the same cache.

    ``inputs`` are the kernel's, from the query to at most ``attention_bias``, in the type of ``for_cache``. Scales of
    an int8 cache follow them, and the output of a float16 kernel goes back to float32.
    """
    past, scales = attention.inputs[3], attention.inputs[8:]
    named: dict[str, int | str] = {
        "num_heads": attention.attributes["num_heads"].as_int(),
        "kv_num_heads": attention.attributes["kv_num_heads"].as_int(),
        **attributes,
    }
    if scales:
        inputs = [*inputs, *[None] * (12 - len(inputs)), *scales]  # k_scale and v_scale are inputs 12 and 13
        named |= _INT8
    output, *present = rewriter.op_outputs("GroupQueryAttention", *inputs, outputs=3, domain=MICROSOFT, **named)
    if past is not None and past.dtype == ir.DataType.FLOAT16:
        output = rewriter.op("Cast", output, to=int(ir.DataType.FLOAT))
    rewriter.replace(output, *present)
