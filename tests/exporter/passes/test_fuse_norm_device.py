"""FuseNormDevice: each reader norms its input itself."""

from __future__ import annotations

import onnx_ir as ir
from half_precision import names, nodes, stored

from helium_onnx.exporter.passes.fuse_norm_device import FuseNormDevice
from helium_onnx.exporter.passes.lower_linear_device import LowerLinearDevice


def test_every_norm(traced: ir.Model) -> None:
    model = stored(traced)
    LowerLinearDevice()(model)
    streams = {str(node.inputs[1].name): node.inputs[0] for node in nodes(model, "RMSNorm")}  # type: ignore[union-attr]
    assert len(streams) == 2 * 3 + 1
    assert FuseNormDevice()(model).modified
    assert not nodes(model, "RMSNorm")
    normed = [node for node in nodes(model, "DeviceLinear") if node.attributes["norm"].as_int()]
    assert len(normed) == 3 * 3 + 1  # packed q, k and v; gate and up apart; the head
    for node in normed:
        assert node.attributes["epsilon"].as_float() == epsilon()
        assert node.inputs[0] is streams[str(names(node.inputs)[1])]
    assert not FuseNormDevice()(model).modified


def epsilon() -> float:
    """As a float32, which an attribute is."""
    return ir.AttrFloat32("epsilon", 1e-8).as_float()


def test_a_norm_that_others_read_stays(traced: ir.Model) -> None:
    model = stored(traced)  # products are not lowered
    assert not FuseNormDevice()(model).modified
    assert len(nodes(model, "RMSNorm")) == 2 * 3 + 1
