"""Give the logits of one token alone, whose place among the new ones is an input: for prefill of fixed shape."""

from __future__ import annotations

import onnx_ir as ir

from helium_onnx.exporter.passes.rewriting import Rewriter, logits_and_head, read_one_position


class LastPositionStatic(ir.passes.InPlacePass):
    """Pattern: ``logits = head(hidden)``, the one node that makes the graph output ``logits``.

    Replacement: ``head(Gather(hidden, last_position))`` along the tokens, with a new input ``last_position`` int64
    ``[1]``, and logits ``[batch_size, 1, vocab_size]``. The last new tokens may be padding, and nothing else in the
    graph says which: its mask is one of scores.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = logits_and_head(model)
        if found is None:
            return ir.passes.PassResult(model, modified=False)
        logits, head = found
        where = ir.Value(name="last_position", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
        model.graph.inputs.append(where)
        read_one_position(logits, head, Rewriter(head).op("Gather", head.inputs[0], where, axis=1))
        return ir.passes.PassResult(model, modified=True)
