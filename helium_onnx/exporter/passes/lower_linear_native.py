"""Lower quantized linear layers to the operator of our own kernels, several of one input together."""

from __future__ import annotations

import onnx_ir as ir

from helium_onnx.exporter.passes.rewriting import KERNELS, MICROSOFT, Rewriter, nodes_of


class LowerLinearNative(ir.passes.InPlacePass):
    """Pattern: ``MatMulNBits(x, quanta, scales[, zeros])``, alone or as

    - ``Concat(MatMulNBits(x, ...), MatMulNBits(x, ...), ...)`` on the last axis, of one ``x``;
    - ``MatMulNBits(Mul(silu(g), u), ...)``, silu written as ``Mul(g, Sigmoid(g))``, where g and u are
      ``MatMulNBits`` of one ``x``;
    - the one that makes ``logits``.

    Replacement: ``helium_onnx.kernels::QuantizedLinear(x, quanta, scales[, zeros], ...)`` over the same tensors: one
    node for all matrices of the ``Concat``; one for g and u, and one with ``gated=1`` that reads both; with
    ``last=1`` where ``last_position`` is asked for, logits of each row's last token alone.
    """

    def __init__(self, *, last_position: bool) -> None:
        super().__init__()
        self.last_position = last_position

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = nodes_of(model, MICROSOFT, "MatMulNBits")
        if not nodes:
            return ir.passes.PassResult(model, modified=False)
        for concat in [node for node in nodes_of(model, "", "Concat") if node.attributes["axis"].as_int() == -1]:
            producers = [None if value is None else value.producer() for value in concat.inputs]
            matmuls = [node for node in producers if node is not None and node in nodes]
            if len(matmuls) == len(producers) and len({node.inputs[0] for node in matmuls}) == 1:
                Rewriter(concat).replace(_linear(concat, matmuls))
                _remove(model.graph, *matmuls)
        for down in [node for node in nodes if node.graph is not None]:
            gated = _gated(down)
            if gated is not None:
                product, activation, sigmoid, gate, up = gated
                both = _linear(gate, [gate, up])
                Rewriter(down).replace(_linear(down, [down], x=both, gated=1))
                _remove(model.graph, product, activation, sigmoid, gate, up)
        for node in [node for node in nodes if node.graph is not None]:
            is_head = any(output.name == "logits" for output in node.outputs)
            Rewriter(node).replace(_linear(node, [node], last=int(is_head and self.last_position)))
            if is_head and self.last_position:
                logits = next(value for value in model.graph.outputs if value.name == "logits")
                assert logits.shape is not None
                logits.shape = ir.Shape(["batch_size", 1, logits.shape[2]])
        _remove(model.graph, *nodes_of(model, "", "Cast"))  # of scales
        return ir.passes.PassResult(model, modified=True)


def _linear(
    place: ir.Node, matmuls: list[ir.Node], *, x: ir.Value | None = None, gated: int = 0, last: int = 0
) -> ir.Value:
    """One QuantizedLinear in front of ``place`` for the matrices of ``matmuls``."""
    weights = [_stored(value) for node in matmuls for value in node.inputs[1:] if value is not None]

    def each(name: str) -> list[int]:
        return [node.attributes[name].as_int() for node in matmuls]

    y = Rewriter(place).op(
        "QuantizedLinear", x or matmuls[0].inputs[0], *weights,
        domain=KERNELS,
        columns=each("K")[0],
        rows=each("N"),
        bits=each("bits"),
        block_size=each("block_size"),
        has_zeros=[int(len(node.inputs) > 3 and node.inputs[3] is not None) for node in matmuls],
        gated=gated,
        last=last,
    )  # fmt: skip
    y.type = ir.TensorType(ir.DataType.FLOAT)
    return y


def _stored(weight: ir.Value) -> ir.Value:
    """``weight`` itself, or what it is a ``Cast`` of: our operator takes scales in float16 too."""
    cast = weight.producer()
    if cast is None:
        return weight
    stored = cast.inputs[0]
    assert cast.op_type == "Cast" and stored is not None
    return stored


def _gated(down: ir.Node) -> tuple[ir.Node, ir.Node, ir.Node, ir.Node, ir.Node] | None:
    """The nodes (product, silu's product, sigmoid, gate, up) in front of a down projection; None for another."""
    product = _producer(down.inputs[0], "Mul")
    if product is None:
        return None
    for first, second in (product.inputs, reversed(product.inputs)):
        activation, up = _producer(first, "Mul"), _producer(second, "MatMulNBits")
        if activation is None or up is None:
            continue
        for one, other in (activation.inputs, reversed(activation.inputs)):
            gate, sigmoid = _producer(one, "MatMulNBits"), _producer(other, "Sigmoid")
            shared = sigmoid is not None and gate is not None and sigmoid.inputs[0] is gate.outputs[0]
            if gate is not None and sigmoid is not None and shared and gate.inputs[0] is up.inputs[0]:
                return product, activation, sigmoid, gate, up
    return None


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def _remove(graph: ir.Graph, *nodes: ir.Node) -> None:
    """Remove nodes that nothing reads any more, readers before what they read."""
    for node in nodes:
        if node.graph is not None and not any(output.uses() for output in node.outputs):
            graph.remove(node, safe=True)
