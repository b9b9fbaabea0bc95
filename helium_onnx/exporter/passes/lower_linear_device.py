"""Lower linear layers to the operator of our own CUDA kernels, several of one input together."""

from __future__ import annotations

import onnx_ir as ir

from helium_onnx.exporter.passes.device_linear import DeviceLinear, Matrix, columns_of, matrix_of
from helium_onnx.exporter.passes.rewriting import Rewriter, nodes_of


class LowerLinearDevice(ir.passes.InPlacePass):
    """Pattern: ``FusedMatMul(x, W)`` or ``MatMulNBits(x, quanta, scales[, zeros])``, alone, or several of one ``x`` in
    a ``Concat`` on the last axis.

    Replacement: ``helium_onnx.kernels::DeviceLinear(x, W | quanta, scales[, zeros], ...)`` over the same tensors, which
    takes and gives float32: one node for all matrices of the ``Concat``.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = False
        for concat in [node for node in nodes_of(model, "", "Concat") if node.attributes["axis"].as_int() == -1]:
            producers = [None if value is None else value.producer() for value in concat.inputs]
            products = [node for node in producers if node is not None and matrix_of(node) is not None]
            if len(products) == len(producers) and len({node.inputs[0] for node in products}) == 1:
                _replace(concat, products)
                for node in products:
                    model.graph.remove(node, safe=True)
                changed = True
        for node in [node for node in model.graph if matrix_of(node) is not None]:
            _replace(node, [node])
            changed = True
        return ir.passes.PassResult(model, modified=changed)


def _replace(node: ir.Node, products: list[ir.Node]) -> None:
    """One DeviceLinear in the place of ``node`` for the matrices of ``products``."""
    matrices: list[Matrix] = [matrix for product in products if (matrix := matrix_of(product)) is not None]
    x = products[0].inputs[0]
    assert x is not None
    for output in node.outputs:  # logits, too, are float32
        output.type = ir.TensorType(ir.DataType.FLOAT)
    rewriter = Rewriter(node)
    rewriter.replace(DeviceLinear(x, tuple(matrices), columns_of(products[0])).make(rewriter))
