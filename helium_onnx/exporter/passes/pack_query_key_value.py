"""Project to query, key and value with one matrix instead of three."""

from __future__ import annotations

import onnx_ir as ir

from helium_onnx.exporter.passes.rewriting import SOURCE, Rewriter, nodes_of, static_shape
from helium_onnx.modeling import DOMAIN
from helium_onnx.recipe import Quantization


class PackQueryKeyValue(ir.passes.InPlacePass):
    """Pattern: ``CausalAttention(q, k, v, ...)`` whose q, k and v are ``MatMul(x, Transpose(weight))`` of one ``x``.

    Replacement: ``q, k, v = Split(MatMul(x, Transpose(packed)))``, ``packed`` being the three weights ``[N, K]`` one
    below the other: the kernel reads ``x`` once and its threads meet once. GroupQueryAttention takes the packed
    product as it is, and the Split goes (LowerAttentionGroupQuery).

    For quantized weights, whose rows are quantized apart and simply follow each other in the file, and where
    ``unquantized`` says so (StoreLinear keeps rows there, too) for the others; a layer whose three matrices are not
    stored alike stays as it is.
    """

    def __init__(self, quantization: Quantization, *, unquantized: bool = False) -> None:
        super().__init__()
        self.quantization, self.unquantized = quantization, unquantized

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        packed = 0
        for attention in nodes_of(model, DOMAIN, "CausalAttention"):
            projections = [_linear(value) for value in attention.inputs[:3]]
            if any(linear is None for linear in projections):
                continue
            matmuls, transposes, weights = zip(*[p for p in projections if p is not None], strict=True)
            if len({matmul.inputs[0] for matmul in matmuls}) != 1:
                continue
            settings = {self.quantization.settings_of(str(weight.name)) for weight in weights}
            quantized = any(kind.quantized for kind in settings)
            if len(settings) != 1 if quantized else not self.unquantized:
                continue
            _pack(model.graph, attention, matmuls, transposes, weights)
            packed += 1
        return ir.passes.PassResult(model, modified=bool(packed))


def _linear(value: ir.Value | None) -> tuple[ir.Node, ir.Node, ir.Value] | None:
    """The MatMul that makes ``value``, the Transpose it reads, and the weight ``[N, K]`` under that."""
    matmul = None if value is None else value.producer()
    if matmul is None or matmul.op_type != "MatMul" or matmul.inputs[1] is None:
        return None
    transpose = matmul.inputs[1].producer()
    if transpose is None or transpose.op_type != "Transpose" or transpose.inputs[0] is None:
        return None
    weight = transpose.inputs[0]
    return (matmul, transpose, weight) if weight.is_initializer() else None


def _pack(
    graph: ir.Graph,
    attention: ir.Node,
    matmuls: tuple[ir.Node, ...],
    transposes: tuple[ir.Node, ...],
    weights: tuple[ir.Value, ...],
) -> None:
    names = [str(weight.name) for weight in weights]
    rows = [static_shape(weight)[0] for weight in weights]
    name = names[0].replace("q_proj", "qkv_proj")
    shape, dtype = ir.Shape((sum(rows), static_shape(weights[0])[1])), weights[0].dtype or ir.DataType.FLOAT
    tensor = ir.ExternalTensor("", 0, 0, dtype, shape=shape, name=name)
    packed = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype), const_value=tensor)
    packed.metadata_props[SOURCE] = "+".join(names)
    graph.register_initializer(packed)

    rewriter = Rewriter(matmuls[0])
    product = rewriter.op("MatMul", matmuls[0].inputs[0], rewriter.op("Transpose", packed, perm=[1, 0]))
    parts = rewriter.op_outputs("Split", product, rewriter.constant(rows), outputs=3, axis=-1)
    for index, part in enumerate(parts):
        attention.replace_input_with(index, part)
    for node in (*matmuls, *transposes):
        graph.remove(node, safe=True)
    for weight in names:
        del graph.initializers[weight]
