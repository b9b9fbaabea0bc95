"""Give the logits of the last token alone, by a node that runs on the device."""

from __future__ import annotations

import onnx_ir as ir

from helium_onnx.exporter.passes.rewriting import Rewriter


class LastPositionCuda(ir.passes.InPlacePass):
    """Pattern: ``logits = head(hidden)``, the one node that makes the graph output ``logits``.

    Replacement: ``head(Gather(hidden, [-1], axis=1))`` and logits ``[batch_size, 1, vocab_size]``. Rows are not padded
    there, unlike in LastPosition's form, whose shapes and masks would be computed on the CPU.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        logits = next((value for value in model.graph.outputs if value.name == "logits"), None)
        head = None if logits is None else logits.producer()
        if logits is None or head is None:
            return ir.passes.PassResult(model, modified=False)
        rewriter, hidden = Rewriter(head), head.inputs[0]
        assert hidden is not None
        last = rewriter.op("Gather", hidden, rewriter.constant([-1]), axis=1)
        last.type = hidden.type
        head.replace_input_with(0, last)
        assert logits.shape is not None
        logits.shape = ir.Shape(["batch_size", 1, logits.shape[2]])
        return ir.passes.PassResult(model, modified=True)
