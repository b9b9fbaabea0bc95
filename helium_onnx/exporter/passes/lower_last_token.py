"""Lower the choice of each row's last token to standard operators."""

from __future__ import annotations

import onnx_ir as ir

from helium_onnx.exporter.passes.rewriting import Rewriter, nodes_of
from helium_onnx.modeling import DOMAIN


class LowerLastToken(ir.passes.InPlacePass):
    """Pattern: ``helium_onnx::LastToken(x, input_ids)`` with ``pad_token_id``.

    Replacement: ``GatherND(x, place, batch_dims=1)``, ``place[b]`` being the ``ArgMax`` of ``Range(sequence_length)``
    with 0 for each ``input_ids`` that is padding: the rightmost token that is none, and of padding throughout the
    first. The mask is not asked, since ``transformers`` does not.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = nodes_of(model, DOMAIN, "LastToken")
        for node in nodes:
            rewriter = Rewriter(node)
            x, input_ids = node.inputs
            padding = rewriter.constant(node.attributes["pad_token_id"].as_int())
            real = rewriter.op("Not", rewriter.op("Equal", input_ids, padding))
            length = rewriter.op("Squeeze", rewriter.op("Shape", input_ids, start=1, end=2), rewriter.constant([0]))
            slots = rewriter.op("Range", rewriter.constant(0), length, rewriter.constant(1))
            places = rewriter.op("Mul", slots, rewriter.op("Cast", real, to=int(ir.DataType.INT64)))
            place = rewriter.op("ArgMax", places, axis=1, keepdims=1)
            rewriter.replace(rewriter.op("GatherND", x, place, batch_dims=1))
        return ir.passes.PassResult(model, modified=bool(nodes))
