"""LowerAttentionCuda: the fused attention, its lengths inputs of the graph."""

from __future__ import annotations

import graph_making
import numpy as np
import onnx_ir as ir
import pytest
from half_precision import coded, names, nodes, stored

from helium_onnx.exporter.passes.lower_attention_cuda import LowerAttentionCuda
from helium_onnx.exporter.passes.set_compute_type import SetComputeType
from helium_onnx.recipe import load_recipe


@pytest.mark.parametrize("model_type", ["helium", "llama"])
@pytest.mark.parametrize(("past", "new"), [(0, 6), (5, 1), (5, 3)])
def test_numbers(past: int, new: int, model_type: str) -> None:
    """In buffers longer than the tokens, whose rest is not read: NaN would show."""
    sizes, longest = graph_making.config(model_type), 12
    model = graph_making.attention(sizes)
    SetComputeType(ir.DataType.FLOAT16)(model)
    assert LowerAttentionCuda()(model).modified
    feed = graph_making.attention_feed(sizes, past, new, [[1] * (past + new)])
    halved = {n: x.astype(np.float16) if x.dtype == np.float32 else x for n, x in feed.items()}
    exact = graph_making.attention_eagerly(
        sizes, {n: x.astype(np.float32) if x.dtype == np.float16 else x for n, x in halved.items()}
    )
    for name in ("past_key", "past_value"):
        buffer = np.full((1, sizes.num_key_value_heads, longest, sizes.head_dim), np.nan, np.float16)
        buffer[:, :, :past] = halved[name]
        halved[name] = buffer
    output, *present = graph_making.run(
        model,
        {
            **halved,
            "seqlens_k": np.array([past + new - 1], np.int32),
            "total_sequence_length": np.array(longest, np.int32),
        },
    )
    # Of float16: scores, weights and products are rounded, each by at most 2^-11, and keys and values once.
    assert output.dtype == np.float16
    np.testing.assert_allclose(output, exact[0], atol=2**-9 * float(np.abs(exact[0]).max()))
    for have, want in zip(present, exact[1:], strict=True):
        np.testing.assert_allclose(have[:, :, : past + new], want, atol=2**-10 * float(np.abs(want).max()))


def test_packed_products_go_straight_in(traced: ir.Model) -> None:
    model = stored(traced)
    assert graph_making.operators(model)["Split"] == 3
    assert LowerAttentionCuda()(model).modified
    counts = graph_making.operators(model)
    assert (counts["com.microsoft.GroupQueryAttention"], counts["Split"], counts["Constant"]) == (3, 0, 0)
    for node in nodes(model, "GroupQueryAttention"):
        assert node.inputs[0].producer().op_type == "FusedMatMul"  # type: ignore[union-attr]
        assert names(node.inputs)[1:3] == [None, None]
        assert names(node.inputs)[5:] == ["seqlens_k", "total_sequence_length", "cos", "sin"]
    inputs = {value.name: value for value in model.graph.inputs}
    assert "attention_mask" not in inputs
    assert [(inputs[n].dtype, inputs[n].shape) for n in ("seqlens_k", "total_sequence_length")] == [
        (ir.DataType.INT32, ir.Shape(["batch_size"])), (ir.DataType.INT32, ir.Shape([])),
    ]  # fmt: skip


@pytest.mark.parametrize("recipe", ["cuda-fp16", "cuda-bf16"])
def test_over_codes(recipe: str, traced: ir.Model) -> None:
    """The kernel takes them beside operands of the graph's type: nothing is converted."""
    model = stored(traced, coded(recipe))
    assert LowerAttentionCuda()(model).modified
    counts = graph_making.operators(model)
    assert (counts["com.microsoft.GroupQueryAttention"], counts["Split"], counts["Cast"]) == (3, 0, 0)
    for layer, node in enumerate(nodes(model, "GroupQueryAttention")):
        scales = [f"model.layers.{layer}.self_attn.{kind}_cache.scales" for kind in ("key", "value")]
        assert names(node.inputs)[5:] == [
            "seqlens_k", "total_sequence_length", "cos", "sin", None, None, None, *scales,
        ]  # fmt: skip
        assert {value.dtype for value in node.inputs[12:] if value is not None} == {ir.DataType.FLOAT}
        assert {output.dtype for output in node.outputs[1:]} == {ir.DataType.INT8}


def test_nothing_to_do(traced: ir.Model) -> None:
    model = stored(traced, load_recipe("cuda-bf16"))
    LowerAttentionCuda()(model)
    assert not LowerAttentionCuda()(model).modified
