"""Move a lowered graph to a later operator set."""

from __future__ import annotations

import onnx_ir as ir

#: What the graphs hold beside the operators that are new in set 23. From 18 on, their definitions only gained types.
_UNCHANGED = frozenset({"Add", "Concat", "Constant", "Gather", "MatMul", "Mul", "Reshape", "Sigmoid", "Transpose"})
_NEW = {23: frozenset({"Attention", "RMSNormalization", "RotaryEmbedding"})}


class SetOperatorSet(ir.passes.InPlacePass):
    """Pattern: a graph of standard operators that mean the same in set 18 and in ``version``.

    Replacement: the same, whose imports say ``version``.
    """

    def __init__(self, version: int) -> None:
        super().__init__()
        self.version = version

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        known = _UNCHANGED | _NEW[self.version]
        for node in model.graph:
            assert node.domain or node.op_type in known, f"{node.op_type} may mean something else in set {self.version}"
        model.graph.opset_imports[""] = self.version
        return ir.passes.PassResult(model, modified=True)
