"""Lower the MLP's activation to one operator."""

from __future__ import annotations

import onnx_ir as ir

from helium_onnx.exporter.passes.rewriting import MICROSOFT, Rewriter, nodes_of


class LowerGate(ir.passes.InPlacePass):
    """Pattern: ``Mul(g, Sigmoid(g))`` in either order, which is how the exporter writes silu, the Sigmoid read by
    nothing else.

    Replacement: ``com.microsoft::QuickGelu(g)`` with ``alpha=1``, which is ``g * sigmoid(alpha * g)``: one pass over
    memory instead of two. The product with ``up`` stays a ``Mul``.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        fused = 0
        for sigmoid in nodes_of(model, "", "Sigmoid"):
            gate, users = sigmoid.inputs[0], [user for user, _ in sigmoid.outputs[0].uses()]
            if len(users) != 1 or (product := users[0]).op_type != "Mul" or product.domain:
                continue
            if set(product.inputs) != {gate, sigmoid.outputs[0]}:
                continue
            rewriter = Rewriter(product)
            rewriter.replace(rewriter.op("QuickGelu", gate, domain=MICROSOFT, alpha=1.0))
            model.graph.remove(sigmoid, safe=True)
            fused += 1
        return ir.passes.PassResult(model, modified=bool(fused))
