"""Let a traced graph compute in half precision."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


class SetComputeType(ir.passes.InPlacePass):
    """Pattern: every float32 value of the traced graph: inputs, outputs, weights and what lies between.

    Replacement: the same in ``dtype``. The trace holds no constant and no ``Cast`` in float32, and its nodes take the
    type of their operands. Weights are rounded when they are written (StoreLinear, StoreRemaining).
    """

    def __init__(self, dtype: ir.DataType) -> None:
        super().__init__()
        self.dtype = dtype

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = False
        for node in model.graph:
            fixed = [a.name for a in node.attributes.values() if a.type == ir.AttributeType.TENSOR]
            wide = [name for name in fixed if node.attributes[name].as_tensor().dtype == ir.DataType.FLOAT]
            assert not wide, f"{node.op_type} holds a float32 constant"
            assert node.op_type != "Cast" or node.attributes["to"].as_int() != ir.DataType.FLOAT, "a Cast to float32"
        for value in values(model):
            if value.dtype == ir.DataType.FLOAT:
                value.type = ir.TensorType(self.dtype)
                changed = True
        return ir.passes.PassResult(model, modified=changed)


def values(model: ir.Model) -> Iterator[ir.Value]:
    """All values of a graph without subgraphs."""
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph:
        yield from node.outputs
