"""Fuse the two products of the gated MLP with the activation between them."""

from __future__ import annotations

import onnx_ir as ir

from helium_onnx.exporter.passes.device_linear import DeviceLinear
from helium_onnx.exporter.passes.rewriting import MICROSOFT, Rewriter, nodes_of


class FuseGateDevice(ir.passes.InPlacePass):
    """Pattern: ``Mul(QuickGelu(DeviceLinear(x, gate)), DeviceLinear(x, up))`` in either order (LowerGate makes the
    QuickGelu), of one matrix each, that nothing else reads.

    Replacement: one ``DeviceLinear(x, gate, up)`` with ``gated=1``, which writes the products' product alone.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        fused = 0
        for activation in nodes_of(model, MICROSOFT, "QuickGelu"):
            users = [user for user, _ in activation.outputs[0].uses()]
            if len(users) != 1 or (product := users[0]).op_type != "Mul":
                continue
            (other,) = [value for value in product.inputs if value is not activation.outputs[0]]
            gate, up = DeviceLinear.of(activation.inputs[0]), DeviceLinear.of(other)
            if gate is None or up is None or gate.x is not up.x:
                continue
            before = [value.producer() for value in (activation.inputs[0], other) if value is not None]
            rewriter = Rewriter(product)
            both = DeviceLinear(gate.x, gate.matrices + up.matrices, gate.columns, gated=True)
            rewriter.replace(both.make(rewriter))
            for node in (activation, *before):
                assert node is not None
                model.graph.remove(node, safe=True)
            fused += 1
        return ir.passes.PassResult(model, modified=bool(fused))
