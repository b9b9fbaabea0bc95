"""LowerAttentionDevice: one node for one new token a row; test_cuda_parity.py runs it."""

from __future__ import annotations

import dataclasses

import graph_making
import onnx_ir as ir
import pytest
from half_precision import coded, names, nodes, stored

from helium_onnx.exporter.passes.lower_attention_device import LowerAttentionDevice
from helium_onnx.recipe import Override, load_recipe


@pytest.mark.parametrize("packed", [True, False])
def test_nodes(packed: bool, traced: ir.Model) -> None:
    recipe = load_recipe("cuda-int4")
    apart = () if packed else (Override("model.layers.*.self_attn.v_proj", bits=8),)
    recipe = dataclasses.replace(recipe, quantization=dataclasses.replace(recipe.quantization, overrides=apart))
    model = stored(traced, recipe)
    assert LowerAttentionDevice()(model).modified
    counts = graph_making.operators(model)
    assert (counts["helium_onnx.kernels.DeviceAttention"], counts["Split"], counts["Constant"]) == (3, 0, 0)
    for layer, node in enumerate(nodes(model, "DeviceAttention")):
        assert node.inputs[0].producer().op_type == ("MatMulNBits" if packed else "Concat")  # type: ignore[union-attr]
        past = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
        assert names(node.inputs)[1:] == [*past, "seqlens_k", "cos", "sin"]
        assert {name: a.as_int() for name, a in node.attributes.items()} == {
            "num_heads": 4, "kv_num_heads": 2, "head_dim": 16, "interleaved": 1,
        }  # fmt: skip
        assert node.outputs[0].dtype == ir.DataType.FLOAT
        assert {output.dtype for output in node.outputs[1:]} == {ir.DataType.FLOAT16}
    inputs = {value.name for value in model.graph.inputs}
    assert "seqlens_k" in inputs
    assert not inputs & {"attention_mask", "total_sequence_length"}


@pytest.mark.parametrize("recipe", ["cuda-fp16", "cuda-bf16"])
def test_over_codes(recipe: str, traced: ir.Model) -> None:
    model = stored(traced, coded(recipe))
    assert LowerAttentionDevice()(model).modified
    assert not nodes(model, "DeviceAttention")
    for layer, node in enumerate(nodes(model, "DeviceAttentionInt8")):
        past = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
        scales = [f"model.layers.{layer}.self_attn.{kind}_cache.scales" for kind in ("key", "value")]
        assert names(node.inputs)[1:] == [*past, "seqlens_k", "cos", "sin", *scales]
        compute = ir.DataType.FLOAT16 if recipe == "cuda-fp16" else ir.DataType.BFLOAT16
        kinds = [value.dtype for value in node.inputs[1:] if value is not None]
        assert kinds == [
            *[ir.DataType.INT8] * 2, ir.DataType.INT32, compute, compute, *[ir.DataType.FLOAT] * 2,
        ]  # fmt: skip
        assert [output.dtype for output in node.outputs] == [ir.DataType.FLOAT, ir.DataType.INT8, ir.DataType.INT8]


def test_nothing_to_do(traced: ir.Model) -> None:
    model = stored(traced)
    LowerAttentionDevice()(model)
    assert not LowerAttentionDevice()(model).modified
