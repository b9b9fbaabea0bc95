"""FuseSkipNorm: a residual sum and the norm after it become one node, and the sum stays readable."""

from __future__ import annotations

import graph_making
import numpy as np
import onnx_ir as ir

from helium_onnx.exporter.passes.fuse_skip_norm import FuseSkipNorm
from helium_onnx.exporter.passes.lower_norm import LowerNormFused

DIMS: list[int | str] = ["b", "s", 64]


def skip_norm(first: str = "Add") -> ir.Model:
    values = graph_making.named("x", "skip", "weight")
    total = ir.Node("", first, [values["x"], values["skip"]])
    attributes = ir.convenience.convert_attributes({"axis": -1, "epsilon": 1e-8, "stash_type": 1})
    norm = ir.Node("", "SimplifiedLayerNormalization", [total.outputs[0], values["weight"]], attributes=attributes)
    again = ir.Node("", "Add", [total.outputs[0], norm.outputs[0]])
    total.outputs[0].shape, total.outputs[0].type = ir.Shape(DIMS), ir.TensorType(ir.DataType.FLOAT)
    return graph_making.model(
        {"x": DIMS, "skip": DIMS, "weight": [64]}, [total, norm, again],
        {"y": norm.outputs[0], "total": total.outputs[0], "z": again.outputs[0]}, values,
    )  # fmt: skip


def test_numbers_and_names() -> None:
    rng = np.random.default_rng(0)
    feed = {name: rng.standard_normal((2, 5, 64)).astype(np.float32) for name in ("x", "skip")}
    feed["weight"] = rng.standard_normal(64).astype(np.float32)
    expected = graph_making.run(skip_norm(), feed)
    model = skip_norm()
    assert FuseSkipNorm()(model).modified
    assert graph_making.operators(model) == {"com.microsoft.SkipSimplifiedLayerNormalization": 1, "Add": 1}
    assert [value.name for value in model.graph.outputs] == ["y", "total", "z"]
    for found, want in zip(graph_making.run(model, feed), expected, strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def test_another_producer_is_left_alone() -> None:
    model = skip_norm("Sub")
    assert not FuseSkipNorm()(model).modified
    assert graph_making.operators(model)["SimplifiedLayerNormalization"] == 1


def test_all_norms_but_the_first(traced: ir.Model) -> None:
    LowerNormFused()(traced)
    assert FuseSkipNorm()(traced).modified
    counts = graph_making.operators(traced)
    assert counts["com.microsoft.SkipSimplifiedLayerNormalization"] == 6
    assert counts["SimplifiedLayerNormalization"] == 1
    assert counts["Add"] == 0
    assert not FuseSkipNorm()(traced).modified
