"""Let the native graph choose the token that comes next."""

from __future__ import annotations

import onnx_ir as ir

from helium_onnx.exporter.passes.next_token import add_next_token_ids
from helium_onnx.exporter.passes.rewriting import KERNELS, Rewriter, logits_and_head


class NextTokenDevice(ir.passes.InPlacePass):
    """Pattern: the graph output ``logits``, float32 ``[batch_size, 1, vocab_size]``.

    Replacement: the same, and one output more, ``next_token_ids = helium_onnx.kernels::DeviceArgMax(logits)``
    ``[batch_size, 1]``: of several largest the first.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = logits_and_head(model)
        if found is None:
            return ir.passes.PassResult(model, modified=False)
        logits, head = found
        chosen = Rewriter(head, behind=True).op("DeviceArgMax", logits, domain=KERNELS)
        add_next_token_ids(model.graph, logits, chosen)
        return ir.passes.PassResult(model, modified=True)
