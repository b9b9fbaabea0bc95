"""Repeat the second traced layer until the graph has all layers of the model."""

from __future__ import annotations

import re
from collections.abc import Iterable

import onnx_ir as ir

_LAYER = re.compile(r"model\.layers\.(\d+)")


class RepeatLayers(ir.passes.InPlacePass):
    """Unroll a graph of two layers to ``num_hidden_layers``.

    Pattern: the nodes whose module scope is ``model.layers.1``. They read one value of layer 0 (the residual
    stream), initializers ``model.layers.1.*``, the inputs ``past_key_values.1.*`` and values shared by all layers;
    one of their values is read by what follows the layers.

    Replacement: for each further layer ``i`` a copy that reads layer ``i - 1``'s residual stream,
    ``model.layers.i.*`` and ``past_key_values.i.*`` and gives ``present.i.*``; what followed layer 1 reads the last.
    """

    def __init__(self, num_hidden_layers: int) -> None:
        super().__init__()
        self.num_hidden_layers = num_hidden_layers

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if self.num_hidden_layers <= 2:
            return ir.passes.PassResult(model, modified=False)
        graph = model.graph
        layer_of = {node: layer_index(node) for node in graph}
        template = [node for node, layer in layer_of.items() if layer == 1]
        assert template, "the trace lost the module scopes of its nodes"
        made_inside = {value for node in template for value in node.outputs}
        entry = _only(
            value
            for node in template
            for value in node.inputs
            if value is not None and (producer := value.producer()) is not None and layer_of[producer] == 0
        )
        exit_ = _only(v for v in made_inside if any(layer_of[user] is None for user, _ in v.uses()))
        readers = [(user, index) for user, index in exit_.uses() if layer_of[user] is None]

        position, stream = template[-1], exit_
        for layer in range(2, self.num_hidden_layers):
            copied: dict[ir.Value, ir.Value] = {entry: stream}
            nodes = [_copy(node, layer, copied, graph, made_inside) for node in template]
            graph.insert_after(position, nodes)
            position, stream = nodes[-1], copied[exit_]
            for output in list(graph.outputs):
                if output in made_inside and output.name is not None:
                    renamed = copied[output]
                    renamed.name, renamed.shape, renamed.type = _renumber(output.name, layer), output.shape, output.type
                    graph.outputs.append(renamed)
        for user, index in readers:
            user.replace_input_with(index, stream)
        return ir.passes.PassResult(model, modified=True)


def layer_index(node: ir.Node) -> int | None:
    """The layer in whose module a traced node was made, or None."""
    match = _LAYER.search(node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))
    return None if match is None else int(match.group(1))


def _only(values: Iterable[ir.Value]) -> ir.Value:
    found = set(values)
    assert len(found) == 1, f"a layer should have one residual stream in and out, not {len(found)}"
    return found.pop()


def _renumber(name: str, layer: int) -> str:
    return re.sub(r"(layers|past_key_values|present)\.1\.", rf"\1.{layer}.", name)


def _copy(
    node: ir.Node, layer: int, copied: dict[ir.Value, ir.Value], graph: ir.Graph, made_inside: set[ir.Value]
) -> ir.Node:
    inputs = [None if v is None else _input(v, layer, copied, graph, made_inside) for v in node.inputs]
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    copy = ir.Node(
        node.domain,
        node.op_type,
        inputs,
        attributes=list(node.attributes.values()),
        num_outputs=len(node.outputs),
        metadata_props={"pkg.torch.onnx.name_scopes": scopes.replace("layers.1", f"layers.{layer}")},
    )
    for old, new in zip(node.outputs, copy.outputs, strict=True):
        new.shape, new.type = old.shape, old.type
        copied[old] = new
    return copy


def _input(
    value: ir.Value, layer: int, copied: dict[ir.Value, ir.Value], graph: ir.Graph, made_inside: set[ir.Value]
) -> ir.Value:
    """What the copy of a node reads where the original read ``value``."""
    if value in copied:
        return copied[value]
    assert value not in made_inside, "nodes of a layer are out of order"
    name = value.name or ""
    if _renumber(name, layer) == name:
        return value  # shared by all layers: the mask, the rotary tables
    fresh = ir.Value(name=_renumber(name, layer), shape=value.shape, type=value.type)
    if value.is_initializer():
        old = value.const_value
        assert isinstance(old, ir.ExternalTensor)
        fresh.const_value = ir.ExternalTensor(
            "", 0, 0, old.dtype, shape=ir.Shape(old.shape.dims), name=fresh.name or ""
        )
        graph.register_initializer(fresh)
    else:
        graph.inputs.append(fresh)
    copied[value] = fresh
    return fresh
