"""One attention over a float16 or int8 cache, in both lowered forms: the kernel against arithmetic in PyTorch."""

from __future__ import annotations

from typing import Any

import graph_making
import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from helium_onnx.config import HeliumConfig
from helium_onnx.exporter.passes.lower_attention_group_query import LowerAttentionGroupQuery
from helium_onnx.exporter.passes.lower_attention_universal import LowerAttentionUniversal
from helium_onnx.modeling import rotate

FORMS = {"group query": LowerAttentionGroupQuery, "universal": LowerAttentionUniversal}
CASES: dict[str, tuple[int, int, list[list[int]]]] = {
    "prefill": (0, 6, [[1] * 6]),
    "right-padded prefill": (0, 6, [[1] * 6, [1] * 4 + [0] * 2]),
    "decode": (5, 1, [[1] * 6, [1] * 6]),
    "chunk": (5, 3, [[1] * 8]),
    "left padding": (0, 6, [[1] * 6, [0] * 4 + [1] * 2]),
    "a row of padding alone": (0, 6, [[1] * 6, [0] * 6]),
    "decode after a gap": (5, 1, [[1] * 6, [1, 1, 0, 0, 0, 1]]),
}
LEFT = ("left padding", "a row of padding alone", "decode after a gap")
#: The kernel alone takes no padding on the left.
FORMS_AND_CASES = [(form, case) for form in FORMS for case in CASES if form == "universal" or case not in LEFT]
#: Codes of magnitudes up to 127 * SCALE: some of 4 standard deviations are clipped.
SCALE = np.float32(3 / 127)


def attention(sizes: HeliumConfig, cache: ir.DataType) -> ir.Model:
    """``graph_making.attention`` as StoreKeyValueCache leaves it."""
    model = graph_making.attention(sizes)
    node = model.graph.node(0)
    graph_values = {value.name: value for value in model.graph.inputs}
    for value in (graph_values["past_key"], graph_values["past_value"], *node.outputs[1:]):
        value.type = ir.TensorType(cache)
    if cache == ir.DataType.FLOAT16:
        for name in ("cos", "sin"):
            graph_values[name].type = ir.TensorType(cache)
        return model
    node.resize_inputs(10)
    for index, name in ((8, "key_scales"), (9, "value_scales")):
        scales = ir.Value(
            name=name, shape=ir.Shape([1, sizes.num_key_value_heads, 1, 16]), type=ir.TensorType(ir.DataType.FLOAT)
        )
        model.graph.inputs.append(scales)
        node.replace_input_with(index, scales)
    return model


def feeds(
    sizes: HeliumConfig, cache: ir.DataType, case: str
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Operands for the graph, and the same for PyTorch, where the past is what its codes say."""
    feed = graph_making.attention_feed(sizes, *CASES[case])
    halved = ("q", "k", "v", "cos", "sin", "past_key", "past_value") if cache == ir.DataType.FLOAT16 else ()
    plain = {name: x.astype(np.float16).astype(np.float32) if name in halved else x for name, x in feed.items()}
    given = {
        name: x.astype(np.float16) if name not in ("q", "k", "v") and name in halved else x for name, x in feed.items()
    }
    if cache == ir.DataType.INT8:
        for name in ("past_key", "past_value"):
            codes = np.clip(np.rint(feed[name] / SCALE), -128, 127)
            given[name], plain[name] = codes.astype(np.int8), (codes * SCALE).astype(np.float32)
        shape = (1, sizes.num_key_value_heads, 1, 16)
        given["key_scales"] = given["value_scales"] = np.full(shape, SCALE, np.float32)
    return given, plain


@pytest.mark.parametrize("model_type", ["helium", "llama"])
@pytest.mark.parametrize("cache", [ir.DataType.FLOAT16, ir.DataType.INT8], ids=str)
@pytest.mark.parametrize(("form", "case"), FORMS_AND_CASES)
def test_numbers(form: str, case: str, cache: ir.DataType, model_type: str) -> None:
    sizes = graph_making.config(model_type)
    model = attention(sizes, cache)
    assert FORMS[form]()(model).modified
    given, plain = feeds(sizes, cache, case)
    output, *present = graph_making.run(model, given)
    assert output.dtype == np.float32
    assert all(np.isfinite(array).all() for array in (output, *present))
    # Of keys and values the graph keeps what rounding makes of the exact ones ...
    past, _, mask = CASES[case]
    slots = np.array(mask)[:, None, :, None] == 1 if form == "group query" else True  # which leaves padding as it is
    exact = graph_making.attention_eagerly(sizes, plain)[1:]
    stored = []
    for have, want in zip(present, exact, strict=True):
        assert have.dtype == cache.numpy()
        if cache == ir.DataType.FLOAT16:
            kept, allowed = have.astype(np.float32), 2**-11 * np.abs(want)
        else:  # half a step, and what no code reaches
            beyond = np.abs(want) - np.where(want < 0, 128, 127) * SCALE
            kept, allowed = have * SCALE, np.maximum(SCALE / 2, beyond)
        assert (np.abs(kept - want) <= allowed + 2e-6).all(where=slots)
        stored.append(kept)
    # ... and attends to what it keeps.
    expected = attend(sizes, plain, *stored)
    real = np.array(mask)[:, past:] == 1
    # float16: the rotated query and the output are rounded, each by at most 2^-11.
    tolerance = 2e-6 if cache == ir.DataType.INT8 else 2**-10 * float(np.abs(expected).max())
    np.testing.assert_allclose(output[real], expected[real], atol=tolerance, rtol=0)


def attend(
    sizes: HeliumConfig, feed: dict[str, NDArray[Any]], keys: NDArray[Any], values: NDArray[Any]
) -> NDArray[Any]:
    """Attention's output where the cache holds ``keys`` and ``values`` of past and new tokens, rotated."""
    new = feed["q"].shape[1]
    past = keys.shape[2] - new
    # The specification rotates new keys itself, so they are handed to it turned back.
    positions = torch.from_numpy((feed["attention_mask"].cumsum(-1) - 1).clip(min=0)[:, -new:])
    cos, sin = (torch.from_numpy(feed[name])[positions].unsqueeze(1) for name in ("cos", "sin"))
    length = cos.square() + sin.square()  # not 1 where the tables are rounded
    back = rotate(torch.from_numpy(keys[:, :, past:]), cos / length, -sin / length, interleaved=sizes.rope_interleaved)
    flat = {
        "k": back.transpose(1, 2).flatten(2).numpy(),
        "v": values[:, :, past:].swapaxes(1, 2).reshape(len(values), new, -1),
        "past_key": keys[:, :, :past],
        "past_value": values[:, :, :past],
    }
    return graph_making.attention_eagerly(sizes, {**feed, **{k: np.ascontiguousarray(v) for k, v in flat.items()}})[0]


@pytest.mark.parametrize("form", FORMS)
def test_what_the_kernel_is_told(form: str) -> None:
    model = attention(graph_making.config(), ir.DataType.INT8)
    FORMS[form]()(model)
    (node,) = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    assert [None if value is None else value.name for value in node.inputs[11:]] == [None, "key_scales", "value_scales"]
    assert {
        name: attribute.value for name, attribute in node.attributes.items() if "quant" in name or "bit" in name
    } == {
        "k_quant_type": "PER_CHANNEL",
        "v_quant_type": "PER_CHANNEL",
        "kv_cache_bit_width": 8,
    }
    assert graph_making.operators(model)["Cast"] == graph_making.operators(plain_lowering(form))["Cast"]


def plain_lowering(form: str) -> ir.Model:
    model = graph_making.attention(graph_making.config())
    FORMS[form]()(model)
    return model
