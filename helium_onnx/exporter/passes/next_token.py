"""Let the graph choose the token that comes next, so that a greedy step copies 8 bytes and not all logits."""

from __future__ import annotations

import onnx_ir as ir

from helium_onnx.exporter.passes.rewriting import Rewriter, logits_and_head

NEXT_TOKEN_IDS = "next_token_ids"


class NextToken(ir.passes.InPlacePass):
    """Pattern: the graph output ``logits`` ``[batch_size, positions, vocab_size]`` in half precision.

    Replacement: ``logits = Cast(logits, float32)``, which clients sample from, and one output more,
    ``next_token_ids = ArgMax(logits, axis=-1)`` ``[batch_size, positions]``: of several largest the first, as numpy.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        found = logits_and_head(model)
        if found is None:
            return ir.passes.PassResult(model, modified=False)
        logits, head = found
        rewriter = Rewriter(head, behind=True)
        wide = rewriter.op("Cast", logits, to=int(ir.DataType.FLOAT))
        chosen = rewriter.op("ArgMax", wide, axis=-1, keepdims=0)
        wide.shape, wide.type = logits.shape, ir.TensorType(ir.DataType.FLOAT)
        logits.name, wide.name = "logits_in_half_precision", "logits"
        graph.outputs[next(i for i, value in enumerate(graph.outputs) if value is logits)] = wide
        add_next_token_ids(graph, wide, chosen)
        return ir.passes.PassResult(model, modified=True)


def add_next_token_ids(graph: ir.Graph, logits: ir.Value, chosen: ir.Value) -> None:
    """Make ``chosen``, int64, an output of ``graph``; its shape is that of ``logits`` but for the vocabulary."""
    assert logits.shape is not None
    chosen.name, chosen.shape = NEXT_TOKEN_IDS, ir.Shape(logits.shape[:-1])
    chosen.type = ir.TensorType(ir.DataType.INT64)
    graph.outputs.append(chosen)
