"""FuseGateDevice: gate, activation, up and their product in one node."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from half_precision import names, nodes, stored

from helium_onnx.exporter.passes.fuse_gate_device import FuseGateDevice
from helium_onnx.exporter.passes.lower_gate import LowerGate
from helium_onnx.exporter.passes.lower_linear_device import LowerLinearDevice


def lowered(traced: ir.Model) -> ir.Model:
    model = stored(traced)
    LowerLinearDevice()(model)
    LowerGate()(model)
    return model


@pytest.mark.parametrize("swapped", [False, True])
def test_every_layer(swapped: bool, traced: ir.Model) -> None:
    model = lowered(traced)
    if swapped:
        for product in nodes(model, "Mul"):
            first, second = product.inputs
            product.replace_input_with(0, second)
            product.replace_input_with(1, first)
    assert FuseGateDevice()(model).modified
    assert not nodes(model, "QuickGelu") and not nodes(model, "Mul")
    gated = [node for node in nodes(model, "DeviceLinear") if node.attributes["gated"].as_int()]
    assert [names(node.inputs)[1:] for node in gated] == [
        [f"model.layers.{i}.mlp.{kind}_proj.weight" for kind in ("gate", "up")] for i in range(3)
    ]
    assert all(node.outputs[0].shape == ir.Shape(["batch_size", 1, 96]) for node in gated)
    assert not FuseGateDevice()(model).modified


def test_products_of_different_inputs_stay(traced: ir.Model) -> None:
    model = lowered(traced)
    for activation in nodes(model, "QuickGelu"):
        gate = activation.inputs[0].producer()  # type: ignore[union-attr]
        assert gate is not None
        gate.replace_input_with(0, ir.Value(name="elsewhere"))
    assert not FuseGateDevice()(model).modified
