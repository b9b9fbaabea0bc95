"""LowerGate: silu in one operator, the same numbers."""

from __future__ import annotations

import graph_making
import numpy as np
import onnx_ir as ir
import pytest

from helium_onnx.exporter.passes.lower_gate import LowerGate


def gate(swapped: bool = False, read_twice: bool = False, other: bool = False) -> ir.Model:
    """``y = g * sigmoid(g)``, or of another factor, or whose sigmoid is an output as well."""
    values = graph_making.named("g", "h")
    sigmoid = ir.Node("", "Sigmoid", [values["g"]])
    factors = [values["h" if other else "g"], sigmoid.outputs[0]]
    product = ir.Node("", "Mul", factors[::-1] if swapped else factors)
    nodes, outputs = [sigmoid, product], {"y": product.outputs[0]}
    if read_twice:
        nodes.append(ir.Node("", "Neg", [sigmoid.outputs[0]]))
        outputs["z"] = nodes[-1].outputs[0]
    return graph_making.model({"g": ["n"], "h": ["n"]}, nodes, outputs, values)


@pytest.mark.parametrize("swapped", [False, True])
def test_numbers(swapped: bool) -> None:
    feed = {"g": np.linspace(-20, 20, 401, dtype=np.float32), "h": np.ones(401, np.float32)}
    model = gate(swapped)
    (expected,) = graph_making.run(model, feed)
    assert LowerGate()(model).modified
    assert graph_making.operators(model) == {"com.microsoft.QuickGelu": 1}
    np.testing.assert_allclose(graph_making.run(model, feed)[0], expected, atol=1e-6)
    assert not LowerGate()(model).modified


@pytest.mark.parametrize("change", ["read_twice", "other"])
def test_what_is_no_silu_stays(change: str) -> None:
    model = gate(**{change: True})
    assert not LowerGate()(model).modified
    assert graph_making.operators(model)["Sigmoid"] == 1


def test_every_layer(traced: ir.Model) -> None:
    assert LowerGate()(traced).modified
    counts = graph_making.operators(traced)
    assert (counts["com.microsoft.QuickGelu"], counts["Mul"], counts["Sigmoid"]) == (3, 3, 0)
