"""Fuse the residual sum with the product that it adds."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from helium_onnx.exporter.passes.device_linear import DeviceLinear
from helium_onnx.exporter.passes.rewriting import Rewriter, nodes_of


class FuseResidualDevice(ir.passes.InPlacePass):
    """Pattern: ``Add(x, DeviceLinear(...))`` in either order, the DeviceLinear read by nothing else.

    Replacement: ``DeviceLinear(..., residual=x)``, in the place of the sum.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        fused = 0
        for add in nodes_of(model, "", "Add"):
            for x, y in (tuple(add.inputs), tuple(reversed(add.inputs))):
                linear = DeviceLinear.of(y)
                if linear is None or linear.residual is not None or y is None or len(y.uses()) != 1:
                    continue
                product = y.producer()
                rewriter = Rewriter(add, scope=product)
                rewriter.replace(dataclasses.replace(linear, residual=x).make(rewriter))
                assert product is not None
                model.graph.remove(product, safe=True)
                fused += 1
                break
        return ir.passes.PassResult(model, modified=bool(fused))
