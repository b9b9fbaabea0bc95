"""Which recipes get native graphs, and what these are made of."""

from __future__ import annotations

import dataclasses

import graph_making
import onnx_ir as ir
import pytest

from helium_onnx import contract
from helium_onnx.exporter.graphs import build_graphs, has_native_graphs
from helium_onnx.exporter.trace import trace
from helium_onnx.exporter.weights import WeightPlan
from helium_onnx.recipe import GraphSettings, MatrixSettings, Override, Precision, Quantization, Recipe, load_recipe

INT4 = MatrixSettings(4, 32, symmetric=False)
ALL_INT4 = Quantization("round-to-nearest", 4, INT4, INT4, INT4)
RECIPE = Recipe("mine", "for a test", quantization=ALL_INT4)


def quantized(**changes: object) -> Recipe:
    return dataclasses.replace(RECIPE, quantization=dataclasses.replace(ALL_INT4, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "recipe",
    [
        *(load_recipe(name) for name in ("cpu-int4", "cpu-int4-fast", "cpu-int8")),
        RECIPE,
        quantized(head=MatrixSettings(8, 16), embedding=MatrixSettings(8, 256)),
        quantized(overrides=(Override("model.layers.1.mlp.*", bits=8),)),
        dataclasses.replace(RECIPE, precision=Precision(key_value_cache="float16")),
    ],
    ids=lambda recipe: recipe.name,
)
def test_recipes_that_get_them(recipe: Recipe) -> None:
    assert has_native_graphs(graph_making.config(), recipe)


@pytest.mark.parametrize(
    "recipe",
    [
        load_recipe("cpu-fp32"),
        load_recipe("portable-fp32"),
        quantized(overrides=(Override("model.layers.1.self_attn.o_proj", bits=2),)),
        quantized(overrides=(Override("model.layers.2.mlp.down_proj", bits=32),)),
        quantized(head=MatrixSettings()),
        quantized(accuracy_level=1),
        dataclasses.replace(RECIPE, precision=Precision(key_value_cache="int8")),
        dataclasses.replace(RECIPE, graph=GraphSettings("standard")),
    ],
    ids=["fp32", "portable", "2 bits", "a float32 matrix", "a float32 head", "level 1", "int8 cache", "standard"],
)
def test_recipes_that_do_not(recipe: Recipe, traced: ir.Model) -> None:
    assert not has_native_graphs(graph_making.config(), recipe)
    if recipe.precision.key_value_cache == "int8":
        return  # its graphs need scales of a calibration
    assert set(build_graphs(traced, WeightPlan(), graph_making.config(), recipe)) == set(contract.GRAPHS)


@pytest.mark.parametrize(("hidden_size", "fits"), [(64, True), (96, False), (4096, True), (4160, False)])
def test_the_size_of_heads(hidden_size: int, fits: bool) -> None:
    """Multiples of 16, up to 1024: of 4 heads."""
    assert has_native_graphs(graph_making.config(hidden_size=hidden_size), RECIPE) is fits


@pytest.mark.parametrize("alike", [True, False], ids=["packed", "three projections"])
def test_a_layer_is_seven_nodes(alike: bool, traced: ir.Model) -> None:
    apart = () if alike else (Override("model.layers.*.self_attn.v_proj", bits=8),)
    graphs = build_graphs(traced, WeightPlan(), graph_making.config(), quantized(overrides=apart))
    assert set(graphs) == {*contract.GRAPHS, *contract.NATIVE_GRAPHS}
    for name in contract.NATIVE_GRAPHS:
        assert graph_making.operators(graphs[name]) == {
            "com.microsoft.GatherBlockQuantized": 1,
            "SimplifiedLayerNormalization": 1,
            "com.microsoft.SkipSimplifiedLayerNormalization": 3 * 2,
            "helium_onnx.kernels.CausalAttentionFloat16": 3,
            "helium_onnx.kernels.QuantizedLinear": 3 * 4 + 1,
        }
        specs = contract.tensors(name, "input", graph_making.config())
        assert [value.name for value in graphs[name].graph.inputs] == [spec.name for spec in specs]
        attention = next(node for node in graphs[name].graph if node.op_type == "CausalAttentionFloat16")
        projection = attention.inputs[0].producer()  # type: ignore[union-attr]
        assert projection is not None
        assert projection.attributes["rows"].as_ints() == ((128,) if alike else (64, 32, 32))
    for prefill, decode in zip(graphs["native_prefill"].graph, graphs["native_decode"].graph, strict=True):
        last = [node.attributes["last"].as_int() if "last" in node.attributes else 0 for node in (prefill, decode)]
        assert last == ([1, 0] if prefill.outputs[0].name == "logits" else [0, 0])


def test_they_read_the_weights_of_the_others(traced: ir.Model) -> None:
    """Nothing is stored for them alone."""
    plan = WeightPlan()
    graphs = build_graphs(traced, plan, graph_making.config(), RECIPE)
    places = {
        name: {v.name: (v.const_value.offset, v.const_value.length) for v in made.graph.initializers.values()}  # type: ignore[union-attr]
        for name, made in graphs.items()
    }
    assert places["native_prefill"] == places["native_decode"]
    assert places["native_decode"].items() <= places["decode"].items()


def test_a_tied_head_reads_the_embedding() -> None:
    config, plan = graph_making.config(tie_word_embeddings=True, num_hidden_layers=1), WeightPlan()
    graph = build_graphs(trace(config), plan, config, RECIPE)["native_decode"].graph
    gather = next(node for node in graph if node.op_type == "GatherBlockQuantized")
    head = next(node for node in graph if node.outputs[0].name == "logits")
    assert head.op_type == "QuantizedLinear"

    def place(value: ir.Value | None) -> tuple[int | None, int | None]:
        assert value is not None
        tensor = value.const_value
        assert isinstance(tensor, ir.ExternalTensor)
        return tensor.offset, tensor.length

    assert place(head.inputs[1]) == place(gather.inputs[0])
    assert place(head.inputs[2]) == place(gather.inputs[2])
