"""AddLowRank: optional inputs beside every linear module of the layers, in each form of graph. Their numbers are
compared with peft's in tests/adapters, those of LowRankUpdate in tests/kernels.
"""

from __future__ import annotations

import graph_making
import onnx_ir as ir
import pytest

from helium_onnx.adapters.parameters import linear_modules
from helium_onnx.exporter.graphs import build_graphs
from helium_onnx.exporter.passes.rewriting import KERNELS
from helium_onnx.exporter.weights import WeightPlan
from helium_onnx.recipe import MatrixSettings, Quantization, Recipe, load_recipe

FOUR, EIGHT = MatrixSettings(4, 32, False), MatrixSettings(8, 32, False)
#: Query, key and value packed in one matrix, and (of other bits) on their own.
PACKED = Recipe(
    "packed", "for a test", quantization=Quantization("round-to-nearest", linear=FOUR, head=EIGHT, embedding=EIGHT)
)


def built(traced: ir.Model, recipe: Recipe, adaptable: bool = True) -> dict[str, ir.Model]:
    models = build_graphs(traced, WeightPlan(), graph_making.config(), recipe, adaptable=adaptable)
    return {str(name): model for name, model in models.items()}


def optional(model: ir.Model) -> dict[str, list[int | str]]:
    """The inputs that are initializers, too: name to dims."""
    values = [value for value in model.graph.inputs if value.name in model.graph.initializers]
    return {str(v.name): [d if isinstance(d, int) else str(d) for d in v.shape or ()] for v in values}


@pytest.mark.parametrize(
    "recipe", [load_recipe("cpu-fp32"), load_recipe("portable-fp32"), PACKED], ids=lambda r: r.name
)
def test_inputs_are_those_of_all_linear_modules(recipe: Recipe, traced: ir.Model) -> None:
    expected = {
        name: list(dims) for module in linear_modules(graph_making.config()) for name, dims in module.parameters()
    }
    assert len(expected) == 3 * 7 * 2
    for model in built(traced, recipe).values():
        assert optional(model) == expected
        for name, dims in expected.items():
            nothing = model.graph.initializers[name].const_value
            assert nothing is not None
            assert list(nothing.shape) == [dim if isinstance(dim, int) else 0 for dim in dims]


def test_nodes(traced: ir.Model) -> None:
    """Packed products get their updates together; natively one node serves all matrices of one QuantizedLinear."""
    before, after = (built(traced.clone(), PACKED, adaptable) for adaptable in (False, True))
    for name in ("prefill", "decode", "model"):
        old, new = graph_making.operators(before[name]), graph_making.operators(after[name])
        assert {op: new[op] - old.get(op, 0) for op in new if new[op] != old.get(op, 0)} == {
            "MatMul": 3 * 7 * 2,
            "Concat": 3,
            "Add": 3 * 5,
        }
    for name in ("native_prefill", "native_decode"):
        old, new = graph_making.operators(before[name]), graph_making.operators(after[name])
        assert {op: new[op] - old.get(op, 0) for op in new if new[op] != old.get(op, 0)} == {
            f"{KERNELS}.LowRankUpdate": 3 * 4
        }


def test_names_come_from_the_modules(traced: ir.Model) -> None:
    model = built(traced, load_recipe("cpu-fp32"))["decode"]
    (reader,) = [user for user, _ in model.graph.initializers["model.layers.1.mlp.down_proj.lora_A.weight"].uses()]
    assert str(reader.name).startswith("model.layers.1.mlp.down_proj.MatMul")


def test_without_it_no_graph_takes_adapters(traced: ir.Model) -> None:
    assert not any(optional(model) for model in built(traced, PACKED, adaptable=False).values())
