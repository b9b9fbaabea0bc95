"""RepeatLayers: a graph of two traced layers, repeated, is the graph that a trace of all layers gives."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable

import graph_making
import onnx_ir as ir
import pytest

from helium_onnx.exporter.passes.name_nodes import NameNodes
from helium_onnx.exporter.passes.repeat_layers import RepeatLayers, layer_index
from helium_onnx.exporter.trace import _export


@pytest.fixture(scope="module")
def direct() -> ir.Model:
    """All three layers traced, none repeated."""
    return _export(dataclasses.replace(graph_making.config(), num_hidden_layers=3))


def connections(model: ir.Model) -> Counter[tuple[str, ...]]:
    """Each node as its name, operator, attributes and what it reads, by the names of modules and initializers."""
    NameNodes()(model)
    return Counter(
        (
            str(node.name),
            node.domain,
            node.op_type,
            repr(
                sorted(
                    (name, str(a.value))
                    for name, a in node.attributes.items()
                    if not isinstance(a.value, ir.TensorProtocol)
                )
            ),
            *(str(value.name) if value is not None else "" for value in node.inputs),
            *(str(value.name) for value in node.outputs),
        )
        for node in model.graph
    )


def test_equal_to_a_direct_trace(traced: ir.Model, direct: ir.Model) -> None:
    direct = direct.clone()
    assert connections(traced) == connections(direct)
    for have, want in ((traced.graph.inputs, direct.graph.inputs), (traced.graph.outputs, direct.graph.outputs)):
        assert [(v.name, str(v.shape), v.dtype) for v in have] == [(v.name, str(v.shape), v.dtype) for v in want]
    shapes = [
        {name: (str(v.shape), v.dtype) for name, v in model.graph.initializers.items()} for model in (traced, direct)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("layers", [2, 3, 7])
def test_every_layer_is_there(layers: int, traced_with_layers: Callable[[int], ir.Model]) -> None:
    model = traced_with_layers(layers)
    assert graph_making.operators(model)["helium_onnx.CausalAttention"] == layers
    per_layer = Counter(layer_index(node) for node in model.graph)
    assert {per_layer[i] for i in range(1, layers)} == {per_layer[1]}
    names = set(model.graph.initializers)
    assert {name for name in names if ".up_proj." in name} == {
        f"model.layers.{i}.mlp.up_proj.weight" for i in range(layers)
    }
    assert len(model.graph.inputs) == 2 + 2 * layers
    assert len(model.graph.outputs) == 1 + 2 * layers


def test_nodes_stand_after_what_they_read(traced: ir.Model) -> None:
    made = set()
    for node in traced.graph:
        for value in node.inputs:
            assert value is None or value.producer() is None or value in made
        made.update(node.outputs)


def test_two_layers_are_not_repeated(traced_with_layers: Callable[[int], ir.Model]) -> None:
    model = traced_with_layers(2)
    assert not RepeatLayers(2)(model).modified
