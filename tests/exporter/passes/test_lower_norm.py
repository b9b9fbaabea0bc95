"""The passes that lower RMSNorm: the arithmetic of modeling.rms_norm, with its epsilon."""

from __future__ import annotations

import graph_making
import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from helium_onnx.exporter.passes.lower_norm import (
    LowerNormFused,
    LowerNormOpset23,
    LowerNormScaled,
    LowerNormStandard,
)
from helium_onnx.modeling import DOMAIN, rms_norm

FORMS: tuple[type[ir.passes.InPlacePass], ...] = (LowerNormFused, LowerNormOpset23, LowerNormStandard, LowerNormScaled)


def norm(epsilon: float, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Model:
    values = graph_making.named("x", "weight")
    attributes = ir.convenience.convert_attributes({"epsilon": epsilon})
    node = ir.Node(DOMAIN, "RMSNorm", list(values.values()), attributes=attributes)
    node.outputs[0].type = ir.TensorType(dtype)
    model = graph_making.model({"x": ["b", "s", 64], "weight": [64]}, [node], {"y": node.outputs[0]}, values)
    for value in values.values():
        value.type = ir.TensorType(dtype)
    return model


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("epsilon", [1e-8, 1e-2])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4], ids=["small", "one", "large"])  # at 1e-4 the epsilon is half the sum
def test_numbers(form: type[ir.passes.InPlacePass], epsilon: float, size: float) -> None:
    model = norm(epsilon)
    assert form()(model).modified
    if form is LowerNormOpset23:
        model.graph.opset_imports[""] = 23
    rng = np.random.default_rng(0)
    x = (size * rng.standard_normal((2, 5, 64))).astype(np.float32)
    x[1, 2] = 0
    weight = rng.standard_normal(64).astype(np.float32)
    (y,) = graph_making.run(model, {"x": x, "weight": weight})
    expected = rms_norm(torch.from_numpy(x), torch.from_numpy(weight), epsilon).numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-7)


def test_fused(traced: ir.Model) -> None:
    assert LowerNormFused()(traced).modified
    counts = graph_making.operators(traced)
    assert counts["SimplifiedLayerNormalization"] == 7
    assert "helium_onnx.RMSNorm" not in counts
    assert not LowerNormFused()(traced).modified


def test_of_set_23(traced: ir.Model) -> None:
    assert LowerNormOpset23()(traced).modified
    counts = graph_making.operators(traced)
    assert counts["RMSNormalization"] == 7
    assert "helium_onnx.RMSNorm" not in counts
    assert not LowerNormOpset23()(traced).modified


def test_standard(traced: ir.Model) -> None:
    assert LowerNormStandard()(traced).modified
    counts = graph_making.operators(traced)
    assert counts["ReduceMean"] == 7
    assert "helium_onnx.RMSNorm" not in counts
    assert not LowerNormStandard()(traced).modified


@pytest.mark.parametrize("size", [1e-6, 3e-4, 1e-2, 1.0, 300.0, 6e4])
def test_scaled_in_float16(size: float) -> None:
    """By onnx's reference, which rounds every step to float16, as ONNX Runtime's CPU kernels do not."""
    model = norm(1e-8, ir.DataType.FLOAT16)
    assert LowerNormScaled()(model).modified
    rng = np.random.default_rng(1)
    x = (size * rng.uniform(-1, 1, (1, 4, 64))).astype(np.float16)
    x[0, 1, 1:] /= 1000  # one that stands out by far
    x[0, 2] = 0
    weight = rng.uniform(0.5, 2, 64).astype(np.float16)
    with np.errstate(all="raise", under="ignore"):
        (y,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x, "weight": weight})
    wide = torch.from_numpy(x.astype(np.float32))
    expected = rms_norm(wide, torch.from_numpy(weight.astype(np.float32)), 1e-8).numpy()
    assert y.dtype == np.float16
    # Some roundings, each by at most 2^-11; and steps of 2^-24 near zero.
    np.testing.assert_allclose(y, expected, rtol=2**-8, atol=2**-9 * float(np.abs(expected).max()) + 2**-23)


def test_scaled(traced: ir.Model) -> None:
    assert LowerNormScaled()(traced).modified
    counts = graph_making.operators(traced)
    assert (counts["ReduceMax"], counts["ReduceMean"]) == (7, 7)
    assert "helium_onnx.RMSNorm" not in counts
    assert not LowerNormScaled()(traced).modified
