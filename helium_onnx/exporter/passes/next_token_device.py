"""Let the native graph choose the token that comes next."""

from __future__ import annotations

import onnx_ir as ir

from helium_onnx.exporter.passes.next_token import add_next_token_ids
from helium_onnx.exporter.passes.rewriting import KERNELS, Rewriter


class NextTokenDevice(ir.passes.InPlacePass):
    """Pattern: the graph output ``logits``, float32 ``[batch_size, 1, vocab_size]``.

    Replacement: the same, and one output more, ``next_token_ids = helium_onnx.kernels::DeviceArgMax(logits)``
    ``[batch_size, 1]``: of several largest the first.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        logits = next((value for value in model.graph.outputs if value.name == "logits"), None)
        head = None if logits is None else logits.producer()
        if logits is None or head is None:
            return ir.passes.PassResult(model, modified=False)
        chosen = Rewriter(head, behind=True).op("DeviceArgMax", logits, domain=KERNELS)
        add_next_token_ids(model.graph, logits, chosen)
        return ir.passes.PassResult(model, modified=True)
