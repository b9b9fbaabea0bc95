"""Lower ``helium_onnx::RMSNorm``: to ONNX Runtime's fused operator, to that of set 23, or to older standard ones."""

from __future__ import annotations

import math

import onnx_ir as ir

from helium_onnx.exporter.passes.rewriting import Rewriter, nodes_of
from helium_onnx.modeling import DOMAIN


class LowerNormFused(ir.passes.InPlacePass):
    """Pattern: ``helium_onnx::RMSNorm(x, weight)``. Replacement: ``SimplifiedLayerNormalization(x, weight)``.

    The operator is ONNX Runtime's, although it is registered in the standard domain. ``stash_type=1`` keeps its
    arithmetic in float32 whatever the type of ``x``.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = nodes_of(model, DOMAIN, "RMSNorm")
        for node in nodes:
            rewriter = Rewriter(node)
            x, weight = node.inputs
            epsilon = node.attributes["epsilon"].as_float()
            y = rewriter.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=epsilon, stash_type=1)
            rewriter.replace(y)
        return ir.passes.PassResult(model, modified=bool(nodes))


class LowerNormOpset23(ir.passes.InPlacePass):
    """Pattern: ``helium_onnx::RMSNorm(x, weight)``. Replacement: set 23's ``RMSNormalization(x, weight)``.

    Its arithmetic is in float32 (``stash_type=1``, its default), as an epsilon of 1e-8 needs.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = nodes_of(model, DOMAIN, "RMSNorm")
        for node in nodes:
            rewriter = Rewriter(node)
            x, weight = node.inputs
            epsilon = node.attributes["epsilon"].as_float()
            rewriter.replace(rewriter.op("RMSNormalization", x, weight, axis=-1, epsilon=epsilon))
        return ir.passes.PassResult(model, modified=bool(nodes))


class LowerNormStandard(ir.passes.InPlacePass):
    """Pattern: ``helium_onnx::RMSNorm(x, weight)``.

    Replacement: ``weight * (x / Sqrt(ReduceMean(x * x) + epsilon))``, standard operators alone, in float32 (epsilon
    1e-8 underflows in float16).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = nodes_of(model, DOMAIN, "RMSNorm")
        for node in nodes:
            rewriter = Rewriter(node)
            x, weight = node.inputs
            epsilon = rewriter.constant(node.attributes["epsilon"].as_float(), ir.DataType.FLOAT)
            mean = rewriter.op("ReduceMean", rewriter.op("Mul", x, x), rewriter.constant([-1]), keepdims=1)
            root = rewriter.op("Sqrt", rewriter.op("Add", mean, epsilon))
            rewriter.replace(rewriter.op("Mul", weight, rewriter.op("Div", x, root)))
        return ir.passes.PassResult(model, modified=bool(nodes))


class LowerNormScaled(ir.passes.InPlacePass):
    """Pattern: ``helium_onnx::RMSNorm(x, weight)``, in half precision throughout.

    Replacement: with ``y = x / m``, m the largest ``|x|`` but at least ``Sqrt(epsilon)``, it is
    ``weight * (y / Sqrt(ReduceMean(y * y) + epsilon / m ** 2))``. No square leaves the range of float16, where
    ``x * x`` overflows from 256 on, and an epsilon of 1e-8 is zero. m changes nothing else: it cancels.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = nodes_of(model, DOMAIN, "RMSNorm")
        for node in nodes:
            rewriter = Rewriter(node)
            x, weight = node.inputs
            assert x is not None and x.dtype is not None, "the type of the activations is not known"
            axis = rewriter.constant([-1])
            root = rewriter.constant(math.sqrt(node.attributes["epsilon"].as_float()), x.dtype)
            size = rewriter.op("Max", x, rewriter.op("Mul", x, rewriter.constant(-1.0, x.dtype)))
            most = rewriter.op("Max", rewriter.op("ReduceMax", size, axis, keepdims=1), root)
            y, ratio = rewriter.op("Div", x, most), rewriter.op("Div", root, most)
            mean = rewriter.op("ReduceMean", rewriter.op("Mul", y, y), axis, keepdims=1)
            norm = rewriter.op("Sqrt", rewriter.op("Add", mean, rewriter.op("Mul", ratio, ratio)))
            rewriter.replace(rewriter.op("Mul", weight, rewriter.op("Div", y, norm)))
        return ir.passes.PassResult(model, modified=bool(nodes))
