"""Give results in float32, whatever the graph computes in."""

from __future__ import annotations

import onnx_ir as ir

from helium_onnx.exporter.passes.rewriting import Rewriter


class Float32Output(ir.passes.InPlacePass):
    """Pattern: a graph output in half precision.

    Replacement: ``Cast(output, float32)`` under its name: bfloat16 is no type of numpy's, and what comes next (a sum
    over tokens, a softmax) is for float32.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = False
        for position, output in enumerate(model.graph.outputs):
            producer = output.producer()
            if output.dtype not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) or producer is None:
                continue
            wide = Rewriter(producer, behind=True).op("Cast", output, to=int(ir.DataType.FLOAT))
            wide.shape, wide.type = output.shape, ir.TensorType(ir.DataType.FLOAT)
            name, output.name = output.name, f"{output.name}_in_half_precision"
            wide.name, model.graph.outputs[position] = name, wide
            changed = True
        return ir.passes.PassResult(model, modified=changed)
