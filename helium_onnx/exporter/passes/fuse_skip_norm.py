"""Fuse the residual sum with the norm that follows it."""

from __future__ import annotations

import onnx_ir as ir

from helium_onnx.exporter.passes.rewriting import MICROSOFT, Rewriter, nodes_of, replace_values


class FuseSkipNorm(ir.passes.InPlacePass):
    """Pattern: ``total = Add(x, skip); y = SimplifiedLayerNormalization(total, weight)``, whatever else reads total.

    Replacement: ``y, _, _, total = com.microsoft::SkipSimplifiedLayerNormalization(x, skip, weight)``: one pass over
    memory instead of two. The middle outputs (mean and inverse deviation) are not made.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        fused = 0
        for norm in nodes_of(model, "", "SimplifiedLayerNormalization"):
            total, weight = norm.inputs
            assert total is not None
            add = total.producer()
            if add is None or add.domain or add.op_type != "Add":
                continue
            rewriter = Rewriter(norm)
            y, mean, deviation, new_total = rewriter.op_outputs(
                "SkipSimplifiedLayerNormalization",
                *add.inputs,
                weight,
                outputs=4,
                domain=MICROSOFT,
                epsilon=norm.attributes["epsilon"].as_float(),
            )
            mean.name, deviation.name = "", ""  # absent, in ONNX's spelling
            new_total.shape, new_total.type = total.shape, total.type
            rewriter.replace(y)
            graph = model.graph
            replace_values(graph, [total], [new_total])
            graph.remove(add, safe=True)
            fused += 1
        return ir.passes.PassResult(model, modified=bool(fused))
