"""LowerEmbeddingDevice: one operator for tables of any bits; test_cuda_parity.py runs it."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
import pytest
from half_precision import names, nodes, stored

from helium_onnx.exporter.passes.lower_embedding_device import LowerEmbeddingDevice
from helium_onnx.recipe import MatrixSettings, load_recipe

TABLE = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("settings", "inputs", "attributes"),
    [
        (MatrixSettings(), [TABLE], (16, 0, 0)),
        (MatrixSettings(4, 64, False, "float16"), [f"{TABLE}.{x}" for x in ("quantized", "scales", "zero_points")],
         (4, 64, 1)),
        (MatrixSettings(8, 16, True, "float16"), [f"{TABLE}.{x}" for x in ("quantized", "scales")], (8, 16, 0)),
    ],
    ids=["plain", "4 bits", "8 bits"],
)  # fmt: skip
def test_nodes(settings: MatrixSettings, inputs: list[str], attributes: tuple[int, int, int], traced: ir.Model) -> None:
    recipe = load_recipe("cuda-int4")
    quantization = dataclasses.replace(recipe.quantization, embedding=settings)
    model = stored(traced, dataclasses.replace(recipe, quantization=quantization))
    assert LowerEmbeddingDevice()(model).modified
    (node,) = nodes(model, "DeviceEmbedding")
    assert names(node.inputs) == ["input_ids", *inputs]
    found = {name: a.as_int() for name, a in node.attributes.items()}
    assert found == {**dict(zip(("bits", "block_size", "has_zeros"), attributes, strict=True)), "columns": 64}
    assert (node.outputs[0].dtype, node.outputs[0].shape) == (ir.DataType.FLOAT, ir.Shape(["batch_size", 1, 64]))
    assert not LowerEmbeddingDevice()(model).modified
