"""Give the logits of each row's last token alone: what makes a prefill graph of the canonical one."""

from __future__ import annotations

import onnx_ir as ir

from helium_onnx.exporter.passes.rewriting import Rewriter, logits_and_head, read_one_position


class LastPosition(ir.passes.InPlacePass):
    """Pattern: ``logits = head(hidden)``, the one node that makes the graph output ``logits``.

    Replacement: ``head(GatherND(hidden, index, batch_dims=1))`` with ``index[b] = ReduceSum(mask of the new tokens)[b]
    - 1`` and logits ``[batch_size, 1, vocab_size]``: rows may be padded on the right. 4096 positions of 48,000 logits
    would cost 786 MB, and the head's arithmetic 4096 times what is asked for.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = logits_and_head(model)
        if found is None:
            return ir.passes.PassResult(model, modified=False)
        logits, head = found
        hidden = head.inputs[0]
        assert hidden is not None
        inputs = {value.name: value for value in model.graph.inputs}
        rewriter = Rewriter(head)
        # The new tokens' part of the mask starts where the past ends: total - sequence_length, as a slice from the end.
        length = rewriter.op("Shape", inputs["input_ids"], start=1, end=2)
        new_mask = rewriter.op(
            "Slice",
            inputs["attention_mask"],
            rewriter.op("Neg", length),
            rewriter.constant([2**62]),
            rewriter.constant([1]),
        )
        count = rewriter.op("ReduceSum", new_mask, rewriter.constant([1]), keepdims=1)
        index = rewriter.op("Unsqueeze", rewriter.op("Sub", count, rewriter.constant([1])), rewriter.constant([2]))
        last = rewriter.op("GatherND", hidden, index, batch_dims=1)
        read_one_position(logits, head, last)
        return ir.passes.PassResult(model, modified=True)
