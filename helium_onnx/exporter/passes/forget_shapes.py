"""Drop the trace's shapes from a graph whose inputs get fixed ones."""

from __future__ import annotations

import onnx_ir as ir


class ForgetShapes(ir.passes.InPlacePass):
    """Pattern: what lies between inputs and outputs, with the shapes that the trace gave to it.

    Replacement: the same without them: their symbols mean nothing where shapes are fixed, and runtimes infer them anew.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        known = [
            value
            for node in model.graph
            for value in node.outputs
            if value.shape is not None and not value.is_graph_output()
        ]
        for value in known:
            value.shape = None
        return ir.passes.PassResult(model, modified=bool(known))
