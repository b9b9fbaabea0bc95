"""SetComputeType: every float32 value becomes half precision, and nothing else changes."""

from __future__ import annotations

from collections import Counter

import graph_making
import onnx_ir as ir
import pytest

from helium_onnx.exporter.passes.set_compute_type import SetComputeType, values


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16], ids=str)
def test_every_float(dtype: ir.DataType, traced: ir.Model) -> None:
    before, operators = Counter(value.dtype for value in values(traced)), graph_making.operators(traced)
    assert SetComputeType(dtype)(traced).modified
    after = Counter(value.dtype for value in values(traced))
    assert after[dtype] == before[ir.DataType.FLOAT] > 0
    assert after[ir.DataType.FLOAT] == 0
    assert after[ir.DataType.INT64] == before[ir.DataType.INT64] > 0  # ids and mask
    assert graph_making.operators(traced) == operators
    assert not SetComputeType(dtype)(traced).modified


@pytest.mark.parametrize("op_type", ["Constant", "Cast"])
def test_what_would_stay_float32_is_not_overlooked(op_type: str) -> None:
    x = graph_making.named("x")["x"]
    attribute = (
        ir.AttrTensor("value", ir.tensor([1.0])) if op_type == "Constant" else ir.AttrInt64("to", ir.DataType.FLOAT)
    )
    node = ir.Node("", op_type, [] if op_type == "Constant" else [x], attributes=[attribute])
    model = graph_making.model({"x": [1]}, [node], {"y": node.outputs[0]}, {"x": x})
    with pytest.raises(AssertionError, match="float32"):
        SetComputeType(ir.DataType.FLOAT16)(model)
