"""StoreKeyValueCache: past and present in the recipe's type, and what the kernel needs beside them."""

from __future__ import annotations

from typing import Literal

import graph_making
import numpy as np
import onnx_ir as ir
import pytest

from helium_onnx.exporter.key_value_scales import LayerScales
from helium_onnx.exporter.passes.rewriting import nodes_of
from helium_onnx.exporter.passes.set_compute_type import SetComputeType
from helium_onnx.exporter.passes.store_key_value_cache import StoreKeyValueCache
from helium_onnx.exporter.passes.store_weights import StoreRemaining
from helium_onnx.exporter.weights import WeightPlan
from helium_onnx.modeling import DOMAIN
from helium_onnx.recipe import Precision

Compute = Literal["float16", "bfloat16"]

SCALES = [LayerScales(*(np.full((2, 16), layer + part, np.float32) for part in (0.25, 0.5))) for layer in range(3)]


def types(model: ir.Model) -> dict[str, set[ir.DataType | None]]:
    """Types of the graph's inputs and outputs, layers folded."""
    found: dict[str, set[ir.DataType | None]] = {}
    for value in (*model.graph.inputs, *model.graph.outputs):
        found.setdefault(str(value.name).split(".")[0], set()).add(value.dtype)
    return found


def test_float32_changes_nothing(traced: ir.Model) -> None:
    before = graph_making.operators(traced)
    assert not StoreKeyValueCache(WeightPlan(), Precision(), None)(traced).modified
    assert graph_making.operators(traced) == before
    assert types(traced)["past_key_values"] == types(traced)["present"] == {ir.DataType.FLOAT}


def test_float16_has_float16_rotary_tables(traced: ir.Model) -> None:
    plan = WeightPlan()
    assert StoreKeyValueCache(plan, Precision(key_value_cache="float16"), None)(traced).modified
    StoreRemaining(plan, graph_making.config())(traced)
    assert types(traced)["past_key_values"] == types(traced)["present"] == {ir.DataType.FLOAT16}
    assert types(traced)["logits"] == {ir.DataType.FLOAT}
    for name in ("cos", "sin"):
        tensor = traced.graph.initializers[name].const_value
        assert tensor is not None and tensor.dtype == traced.graph.initializers[name].dtype == ir.DataType.FLOAT16
    assert {record.dtype for record in plan.records() if record.name in ("cos", "sin")} == {"float16"}


def test_int8_gives_each_layer_its_scales(traced: ir.Model) -> None:
    plan = WeightPlan()
    assert StoreKeyValueCache(plan, Precision(key_value_cache="int8"), SCALES)(traced).modified
    StoreRemaining(plan, graph_making.config())(traced)
    assert types(traced)["past_key_values"] == types(traced)["present"] == {ir.DataType.INT8}
    records = {record.name: record for record in plan.records()}
    for layer, node in enumerate(nodes_of(traced, DOMAIN, "CausalAttention")):
        assert len(node.inputs) == 10
        for value, kind in zip(node.inputs[8:], ("key", "value"), strict=True):
            assert value is not None
            assert value.name == f"model.layers.{layer}.self_attn.{kind}_cache.scales"
            assert value.shape == ir.Shape([1, 2, 1, 16])
            assert records[value.name].source == "calibration"
            assert records[value.name].dtype == "float32"


@pytest.mark.parametrize("compute", ["float16", "bfloat16"])
def test_scales_stay_float32_in_half_precision(compute: Compute, traced: ir.Model) -> None:
    kind, plan = ir.DataType[compute.upper()], WeightPlan()
    SetComputeType(kind)(traced)
    assert StoreKeyValueCache(plan, Precision(compute, "int8"), SCALES)(traced).modified
    assert types(traced)["past_key_values"] == types(traced)["present"] == {ir.DataType.INT8}
    assert traced.graph.initializers["cos"].dtype == traced.graph.initializers["sin"].dtype == kind
    for node in nodes_of(traced, DOMAIN, "CausalAttention"):
        assert [value.dtype for value in node.inputs[8:] if value is not None] == [ir.DataType.FLOAT] * 2
    assert {record.dtype for record in plan.records()} == {"float32"}


@pytest.mark.parametrize("compute", ["float16", "bfloat16"])
def test_the_type_of_compute_changes_nothing(compute: Compute, traced: ir.Model) -> None:
    SetComputeType(ir.DataType[compute.upper()])(traced)
    before = types(traced)
    assert not StoreKeyValueCache(WeightPlan(), Precision(compute, compute), None)(traced).modified
    assert types(traced) == before


def test_an_int8_cache_asks_for_scales(traced: ir.Model) -> None:
    with pytest.raises(Exception, match=r"StoreKeyValueCache|without scales"):
        StoreKeyValueCache(WeightPlan(), Precision(key_value_cache="int8"), None)(traced)


@pytest.mark.parametrize("cache", ["float32", "float16"])
def test_nothing_to_do(cache: str) -> None:
    empty = graph_making.model({}, [], {}, {})
    assert not StoreKeyValueCache(WeightPlan(), Precision(key_value_cache=cache), None)(empty).modified  # type: ignore[arg-type]
