"""LowerAttentionStatic and LowerAttentionStaticStandard: a window of the whole context, whose rest the mask hides."""

from __future__ import annotations

import graph_making
import numpy as np
import onnx_ir as ir
import pytest
from half_precision import names, nodes, stored

from helium_onnx.exporter.passes.lower_attention_static import LowerAttentionStatic
from helium_onnx.exporter.passes.lower_attention_static_standard import LowerAttentionStaticStandard
from helium_onnx.exporter.passes.set_compute_type import SetComputeType

WINDOW, MASKED = 12, float(np.finfo(np.float16).min) / 2
FORMS: tuple[type[ir.passes.InPlacePass], ...] = (LowerAttentionStatic, LowerAttentionStaticStandard)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("model_type", ["helium", "llama"])
@pytest.mark.parametrize(("past", "new", "padding"), [(0, 6, 0), (5, 1, 0), (5, 3, 2), (0, 3, 4)])
def test_numbers(
    past: int, new: int, padding: int, model_type: str, kv_heads: int, form: type[ir.passes.InPlacePass]
) -> None:
    """In a window longer than the past, whose rest is full of large numbers, and with padding behind the new tokens."""
    sizes = graph_making.config(model_type, num_key_value_heads=kv_heads)
    model = graph_making.attention(sizes)
    SetComputeType(ir.DataType.FLOAT16)(model)
    assert form()(model).modified
    if form is LowerAttentionStatic:
        model.graph.opset_imports[""] = 23
    feed = graph_making.attention_feed(sizes, past, new, [[1] * (past + new)])
    halved = {n: x.astype(np.float16) if x.dtype == np.float32 else x for n, x in feed.items()}
    exact = graph_making.attention_eagerly(
        sizes, {n: x.astype(np.float32) if x.dtype == np.float16 else x for n, x in halved.items()}
    )
    for name in ("past_key", "past_value"):
        window = np.full((1, kv_heads, WINDOW, sizes.head_dim), 9, np.float16)
        window[:, :, :past] = halved[name]
        halved[name] = window
    width = new + padding
    for name in ("q", "k", "v"):
        halved[name] = np.concatenate([halved[name], np.full_like(halved[name][:, :1], 9).repeat(padding, 1)], axis=1)
    mask = np.full((1, 1, width, WINDOW + width), MASKED, np.float16)
    mask[..., :past] = 0
    mask[..., WINDOW:] = np.where(np.tri(width, dtype=bool), 0, MASKED)
    positions = np.arange(past, past + width, dtype=np.int64)[None]
    output, *present = graph_making.run(model, {**halved, "attention_mask": mask, "position_ids": positions})
    # Of float16: scores, weights and products are rounded, each by at most 2^-11, and keys and values once.
    assert output.dtype == np.float16
    np.testing.assert_allclose(output[:, :new], exact[0], atol=2**-9 * float(np.abs(exact[0]).max()))
    for have, want in zip(present, exact[1:], strict=True):
        assert have.shape[2] == width
        np.testing.assert_allclose(have[:, :, :new], want[:, :, past:], atol=2**-10 * float(np.abs(want).max()))


def test_what_depends_on_lengths_is_an_input(traced: ir.Model) -> None:
    model = stored(traced, "qnn-fp16")
    assert LowerAttentionStatic()(model).modified
    counts = graph_making.operators(model)
    assert (counts["Attention"], counts["RotaryEmbedding"], counts["Concat"]) == (3, 6, 6)
    assert not {"Shape", "Range", "CumSum", "Slice", "helium_onnx.CausalAttention"} & set(counts)
    inputs = {value.name: value for value in model.graph.inputs}
    assert inputs["attention_mask"].dtype == ir.DataType.FLOAT16
    assert inputs["position_ids"].dtype == ir.DataType.INT64
    assert len(names(model.graph.inputs)) == len(inputs)
    for node in nodes(model, "Attention"):
        assert names(node.inputs)[3:] == ["attention_mask"]
    for node in nodes(model, "RotaryEmbedding"):
        assert names(node.inputs)[1:] == ["cos", "sin", "position_ids"]
        assert node.attributes["interleaved"].as_int() == 1


def test_plain_operators(traced: ir.Model) -> None:
    """Which stay within four dimensions, and repeat no key: compilers hold a copy of what Expand or Tile gives."""
    model = stored(traced, "coreml-fp16")
    assert LowerAttentionStaticStandard()(model).modified
    counts = graph_making.operators(model)
    plain = {"Gather", "Unsqueeze", "MatMul", "Mul", "Add", "Reshape", "Transpose", "Concat", "Softmax", "Constant"}
    assert set(counts) <= {*plain, "Sigmoid", "helium_onnx.RMSNorm"}
    assert (counts["Softmax"], counts["Concat"]) == (3, 6)
    for node in nodes(model, "Reshape"):
        shape = node.inputs[1]
        assert shape is not None and shape.producer() is not None
        assert len(shape.producer().attributes["value"].as_tensor().numpy()) <= 4  # type: ignore[union-attr]
    # From lengths come two inputs, read once: rows of the tables by the one, and the other is added to all scores.
    users = {value.name: [user.op_type for user, _ in value.uses()] for value in model.graph.inputs}
    assert users["position_ids"] == ["Gather", "Gather"]
    assert users["attention_mask"] == ["Add"] * 3


@pytest.mark.parametrize("form", FORMS)
def test_nothing_to_do(traced: ir.Model, form: type[ir.passes.InPlacePass]) -> None:
    model = stored(traced, "qnn-fp16")
    form()(model)
    assert not form()(model).modified
