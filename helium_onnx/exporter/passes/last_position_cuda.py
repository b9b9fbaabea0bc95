"""Give the logits of the last token alone, by a node that runs on the device."""

from __future__ import annotations

import onnx_ir as ir

from helium_onnx.exporter.passes.rewriting import Rewriter, logits_and_head, read_one_position


class LastPositionCuda(ir.passes.InPlacePass):
    """Pattern: ``logits = head(hidden)``, the one node that makes the graph output ``logits``.

    Replacement: ``head(Gather(hidden, [-1], axis=1))`` and logits ``[batch_size, 1, vocab_size]``. Rows are not padded
    there, unlike in LastPosition's form, whose shapes and masks would be computed on the CPU.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = logits_and_head(model)
        if found is None:
            return ir.passes.PassResult(model, modified=False)
        logits, head = found
        rewriter, hidden = Rewriter(head), head.inputs[0]
        assert hidden is not None
        last = rewriter.op("Gather", hidden, rewriter.constant([-1]), axis=1)
        last.type = hidden.type
        read_one_position(logits, head, last)
        return ir.passes.PassResult(model, modified=True)
