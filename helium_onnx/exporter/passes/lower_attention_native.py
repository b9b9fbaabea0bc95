"""Lower attention to the operator of our own kernels: the form of the native graphs."""

from __future__ import annotations

import onnx_ir as ir

from helium_onnx.exporter.passes.lower_attention_group_query import remove_split
from helium_onnx.exporter.passes.rewriting import KERNELS, Rewriter, nodes_of
from helium_onnx.modeling import DOMAIN


class LowerAttentionNative(ir.passes.InPlacePass):
    """Pattern: ``helium_onnx::CausalAttention(q, k, v, past_key, past_value, attention_mask, cos, sin)``.

    Replacement: ``helium_onnx.kernels::CausalAttentionFloat16(qkv, past_key, past_value, past_lengths, cos, sin)``.
    Past and present are float16 there, whatever the recipe keeps: arithmetic stays in float32, and it is half the
    memory and traffic at no loss that can be measured beside that of quantized weights. Without ``half``,
    ``CausalAttention``, where they are float32. ``qkv`` is the input of the ``Split`` that made q, k and v, or
    their ``Concat``, which LowerLinearNative makes part of the projections. The graph's input ``past_lengths`` (tokens
    that each row's past holds) takes the place of ``attention_mask``.

    Without a past, which is None then: over zeros for as many tokens as there are new ones, of which none is read. Rows
    are then padded on the right, where no token of theirs looks, and ``attention_mask`` goes.
    """

    def __init__(self, *, half: bool = True) -> None:
        self.name = "CausalAttentionFloat16" if half else "CausalAttention"
        self.kept = ir.DataType.FLOAT16 if half else ir.DataType.FLOAT

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = nodes_of(model, DOMAIN, "CausalAttention")
        if not nodes:
            return ir.passes.PassResult(model, modified=False)
        whole_texts = nodes[0].inputs[3] is None
        empty: ir.Value | None = None
        if whole_texts:
            lengths, empty = _no_past(nodes[0], next(v for v in model.graph.inputs if v.name == "input_ids"), self.kept)
        else:
            int64 = ir.TensorType(ir.DataType.INT64)
            lengths = ir.Value(name="past_lengths", shape=ir.Shape(["batch_size"]), type=int64)
            model.graph.inputs.append(lengths)
        for node in nodes:
            rewriter = Rewriter(node)
            *projections, past_key, past_value, _, cos, sin = node.inputs[:8]
            split = common_split(projections)
            packed = rewriter.op("Concat", *projections, axis=-1) if split is None else split.inputs[0]
            past_key, past_value = (empty, empty) if whole_texts else (past_key, past_value)
            assert past_key is not None
            assert past_value is not None
            for value in (past_key, past_value, *node.outputs[1:]):
                value.type = ir.TensorType(self.kept)
            outputs = rewriter.op_outputs(
                self.name,
                packed, past_key, past_value, lengths, cos, sin,
                outputs=3,
                domain=KERNELS,
                num_heads=node.attributes["num_heads"].as_int(),
                kv_num_heads=node.attributes["kv_num_heads"].as_int(),
                head_dim=node.attributes["head_dim"].as_int(),
                interleaved=node.attributes["interleaved"].as_int(),
            )  # fmt: skip
            rewriter.replace(*outputs)
            if split is not None:
                remove_split(model.graph, split)
        remove_mask(model.graph)
        return ir.passes.PassResult(model, modified=True)


def _no_past(attention: ir.Node, input_ids: ir.Value, kept: ir.DataType) -> tuple[ir.Value, ir.Value]:
    """Lengths of 0, and zeros of the type ``kept``, ``[batch_size, key/value heads, sequence_length, head_dim]``, in
    one place for all layers: in front of everything, since the operator asks for a buffer to write keys and values to.
    """
    assert isinstance(attention.graph, ir.Graph)
    rewriter = Rewriter(next(iter(attention.graph)))
    batch, length = (rewriter.op("Shape", input_ids, start=axis, end=axis + 1) for axis in (0, 1))
    lengths = rewriter.op("Expand", rewriter.constant([0]), batch)
    heads = rewriter.constant([attention.attributes["kv_num_heads"].as_int()])
    size = rewriter.constant([attention.attributes["head_dim"].as_int()])
    zero = rewriter.constant(0.0, kept)
    return lengths, rewriter.op("Expand", zero, rewriter.op("Concat", batch, heads, length, size, axis=0))


def remove_mask(graph: ir.Graph) -> None:
    """Without the input ``attention_mask``, which nothing reads."""
    for value in [value for value in graph.inputs if value.name == "attention_mask"]:
        assert not value.uses(), "attention_mask is read outside of attention"
        graph.inputs.remove(value)


def common_split(projections: list[ir.Value | None]) -> ir.Node | None:
    """The Split whose three parts are query, key and value; None where they are three products."""
    producers = {value.producer() for value in projections if value is not None}
    node = producers.pop() if len(producers) == 1 else None
    return node if node is not None and node.op_type == "Split" else None
