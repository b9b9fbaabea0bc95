"""LowerLinearDevice, and DeviceLinear read back from what it makes; test_cuda_parity.py runs them."""

from __future__ import annotations

import dataclasses

import graph_making
import onnx_ir as ir
from half_precision import names, nodes, stored

from helium_onnx.exporter.passes.device_linear import DeviceLinear
from helium_onnx.exporter.passes.lower_attention_device import LowerAttentionDevice
from helium_onnx.exporter.passes.lower_linear_device import LowerLinearDevice
from helium_onnx.exporter.passes.rewriting import Rewriter
from helium_onnx.recipe import Override, load_recipe


def mixed(traced: ir.Model) -> ir.Model:
    """q in 16 bits, k in 4, v in 8 without zero points."""
    recipe = load_recipe("cuda-int4")
    overrides = (
        Override("model.layers.*.self_attn.q_proj", bits=32),
        Override("model.layers.*.self_attn.v_proj", bits=8, block_size=16, symmetric=True),
    )
    quantization = dataclasses.replace(recipe.quantization, overrides=overrides)
    model = stored(traced, dataclasses.replace(recipe, quantization=quantization))
    LowerAttentionDevice()(model)
    return model


def test_every_product(traced: ir.Model) -> None:
    model = stored(traced)
    LowerAttentionDevice()(model)
    assert LowerLinearDevice()(model).modified
    counts = graph_making.operators(model)
    assert counts["helium_onnx.kernels.DeviceLinear"] == 3 * 5 + 1
    assert not any("MatMul" in operator for operator in counts)
    head = nodes(model, "DeviceLinear")[-1]
    assert names(head.inputs)[1:] == ["lm_head.weight"]
    assert (head.outputs[0].name, head.outputs[0].dtype) == ("logits", ir.DataType.FLOAT)
    assert not LowerLinearDevice()(model).modified


def test_products_of_one_input_together(traced: ir.Model) -> None:
    model = mixed(traced)
    assert graph_making.operators(model)["Concat"] == 3
    assert LowerLinearDevice()(model).modified
    assert graph_making.operators(model)["Concat"] == 0
    node = nodes(model, "DeviceAttention")[1].inputs[0].producer()  # type: ignore[union-attr]
    assert node is not None
    name = "model.layers.1.self_attn.{}_proj.weight"
    assert names(node.inputs)[1:] == [
        name.format("q"),
        *(f"{name.format('k')}.{part}" for part in ("quantized", "scales", "zero_points")),
        *(f"{name.format('v')}.{part}" for part in ("quantized", "scales")),
    ]
    assert {name: attribute.value for name, attribute in node.attributes.items()} == {
        "columns": 64, "rows": (64, 32, 32), "bits": (16, 4, 8), "block_size": (0, 64, 16), "has_zeros": (0, 1, 0),
        "norm": 0, "residual": 0, "epsilon": 0.0, "gated": 0,
    }  # fmt: skip


def test_a_node_is_read_as_it_was_made(traced: ir.Model) -> None:
    model = mixed(traced)
    LowerLinearDevice()(model)
    node = nodes(model, "DeviceAttention")[0].inputs[0].producer()  # type: ignore[union-attr]
    assert node is not None
    plain = DeviceLinear.of(node.outputs[0])
    assert plain is not None and len(plain.matrices) == 3
    weight, residual = ir.Value(name="norm"), ir.Value(name="residual")
    for change in (
        {},
        {"norm_weight": weight, "epsilon": 0.5},
        {"residual": residual},
        {"norm_weight": weight, "residual": residual, "epsilon": 0.25},
        {"matrices": plain.matrices[1:], "gated": True, "norm_weight": weight},
    ):
        made = dataclasses.replace(plain, **change)  # type: ignore[arg-type]
        assert DeviceLinear.of(made.make(Rewriter(node))) == made


def test_what_is_none() -> None:
    model = graph_making.attention(graph_making.config())
    assert DeviceLinear.of(None) is None
    assert DeviceLinear.of(model.graph.inputs[0]) is None
    assert DeviceLinear.of(model.graph.outputs[0]) is None
