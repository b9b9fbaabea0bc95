"""Fuse a norm with what reads it."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from helium_onnx.exporter.passes.device_linear import DeviceLinear
from helium_onnx.exporter.passes.rewriting import Rewriter, nodes_of
from helium_onnx.modeling import DOMAIN


class FuseNormDevice(ir.passes.InPlacePass):
    """Pattern: ``y = helium_onnx::RMSNorm(x, weight)``, read by ``DeviceLinear(y, ...)`` alone.

    Replacement: ``DeviceLinear(x, weight, ...)`` with ``norm=1``: each reader norms its input itself, which costs less
    than a kernel's start.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        fused = 0
        for norm in nodes_of(model, DOMAIN, "RMSNorm"):
            x, weight = norm.inputs
            readers = [user for user, _ in norm.outputs[0].uses()]
            linears = [DeviceLinear.of(reader.outputs[0]) for reader in readers]
            if x is None or not all(linear is not None and linear.norm_weight is None for linear in linears):
                continue
            epsilon = norm.attributes["epsilon"].as_float()
            for reader, linear in zip(readers, linears, strict=True):
                assert linear is not None
                rewriter = Rewriter(reader)
                wider = dataclasses.replace(linear, x=x, norm_weight=weight, epsilon=epsilon)
                rewriter.replace(wider.make(rewriter))
            model.graph.remove(norm, safe=True)
            fused += 1
        return ir.passes.PassResult(model, modified=bool(fused))
