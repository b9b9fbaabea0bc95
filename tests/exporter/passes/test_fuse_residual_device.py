"""FuseResidualDevice: the product that is added takes what it is added to."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from half_precision import names, nodes, stored

from helium_onnx.exporter.passes.fuse_residual_device import FuseResidualDevice
from helium_onnx.exporter.passes.lower_linear_device import LowerLinearDevice
from helium_onnx.exporter.passes.name_nodes import NameNodes


@pytest.mark.parametrize("swapped", [False, True])
def test_every_sum(swapped: bool, traced: ir.Model) -> None:
    model = stored(traced)
    LowerLinearDevice()(model)
    if swapped:
        for add in nodes(model, "Add"):
            first, second = add.inputs
            add.replace_input_with(0, second)
            add.replace_input_with(1, first)
    assert FuseResidualDevice()(model).modified
    assert not nodes(model, "Add")
    added = [node for node in nodes(model, "DeviceLinear") if node.attributes["residual"].as_int()]
    kinds = [f"model.layers.{i}.{kind}_proj.weight" for i in range(3) for kind in ("self_attn.o", "mlp.down")]
    assert [names(node.inputs)[2] for node in added] == kinds
    # Each adds to what the one before it has made.
    assert [node.inputs[1] for node in added[1:]] == [node.outputs[0] for node in added[:-1]]
    assert added[0].inputs[1].producer().op_type == "Gather"  # type: ignore[union-attr]
    NameNodes()(model)
    assert [node.name for node in added[:2]] == [f"{name.removesuffix('.weight')}.DeviceLinear" for name in kinds[:2]]
    assert not FuseResidualDevice()(model).modified


def test_a_product_that_others_read_stays(traced: ir.Model) -> None:
    model = stored(traced)
    LowerLinearDevice()(model)
    for add in nodes(model, "Add"):
        for value in add.inputs:
            assert value is not None
            model.graph.append(ir.Node("", "Neg", [value]))
    assert not FuseResidualDevice()(model).modified
