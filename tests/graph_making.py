"""Small ONNX IR graphs for tests of single passes, and ONNX Runtime to run what comes out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import tiny
import torch
from numpy.typing import NDArray

from helium_onnx.config import HeliumConfig
from helium_onnx.modeling import DOMAIN, causal_attention, rope_tables

_DTYPES = {"input_ids": ir.DataType.INT64, "attention_mask": ir.DataType.INT64}


def config(model_type: str = "helium", **overrides: Any) -> HeliumConfig:
    """The sizes of tests/tiny.py's checkpoints, with a shorter context."""
    sizes = {
        "model_type": model_type,
        **tiny.SIZES,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-8,
        "rope_theta": 100_000.0,
    }
    return HeliumConfig.from_dict({**sizes, **overrides}, source="tests/graph_making.py")


def model(
    inputs: dict[str, list[int | str]], nodes: list[ir.Node], outputs: dict[str, ir.Value], values: dict[str, ir.Value]
) -> ir.Model:
    """A model of ``nodes`` over ``inputs`` (name: dims), whose values are in ``values``."""
    for name, dims in inputs.items():
        values[name].shape, values[name].type = ir.Shape(dims), ir.TensorType(_DTYPES.get(name, ir.DataType.FLOAT))
    for name, value in outputs.items():
        value.name, value.type = name, value.type or ir.TensorType(ir.DataType.FLOAT)
    opsets = {"": 18, "com.microsoft": 1, DOMAIN: 1}
    graph = ir.Graph(
        [values[name] for name in inputs], list(outputs.values()), nodes=nodes, opset_imports=opsets, name="g"
    )
    return ir.Model(graph, ir_version=10)


def named(*names: str) -> dict[str, ir.Value]:
    return {name: ir.Value(name=name) for name in names}


def operators(model: ir.Model) -> Counter[str]:
    """How many nodes of each operator, Microsoft's with their domain."""
    return Counter(".".join(filter(None, (node.domain, node.op_type))) for node in model.graph)


def run(model: ir.Model, feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """All outputs, from ONNX Runtime without its own optimizations: the graph as it is written."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    proto = ir.serde.serialize_model(model).SerializeToString()
    wanted = {value.name for value in model.graph.inputs}
    session = ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    result: list[NDArray[Any]] = session.run(None, {k: v for k, v in feed.items() if k in wanted})
    return result


def attention(sizes: HeliumConfig) -> ir.Model:
    """One ``helium_onnx::CausalAttention`` node, its operands as inputs, and ``input_ids`` beside them."""
    names = ("q", "k", "v", "past_key", "past_value", "attention_mask", "cos", "sin", "input_ids")
    values = named(*names)
    node = ir.Node(
        DOMAIN,
        "CausalAttention",
        [values[name] for name in names[:-1]],
        attributes=ir.convenience.convert_attributes(
            {
                "num_heads": sizes.num_attention_heads,
                "kv_num_heads": sizes.num_key_value_heads,
                "head_dim": sizes.head_dim,
                "interleaved": int(sizes.rope_interleaved),
            }
        ),
        num_outputs=3,
    )
    width, kv_width = sizes.hidden_size, sizes.num_key_value_heads * sizes.head_dim
    past: list[int | str] = ["b", sizes.num_key_value_heads, "p", sizes.head_dim]
    table: list[int | str] = [sizes.max_position_embeddings, sizes.head_dim // 2]
    inputs: dict[str, list[int | str]] = {
        "q": ["b", "s", width], "k": ["b", "s", kv_width], "v": ["b", "s", kv_width],
        "past_key": past, "past_value": past, "attention_mask": ["b", "t"],
        "cos": table, "sin": table, "input_ids": ["b", "s"],
    }  # fmt: skip
    outputs = dict(zip(("y", "present_key", "present_value"), node.outputs, strict=True))
    return model(inputs, [node], outputs, values)


def attention_feed(sizes: HeliumConfig, past: int, new: int, mask: list[list[int]]) -> dict[str, NDArray[Any]]:
    """Random operands: ``past`` and ``new`` tokens, and a mask over both."""
    generator = torch.Generator().manual_seed(past * 100 + new)
    kv_width = sizes.num_key_value_heads * sizes.head_dim
    shapes = {
        "q": (len(mask), new, sizes.hidden_size),
        "k": (len(mask), new, kv_width),
        "v": (len(mask), new, kv_width),
        "past_key": (len(mask), sizes.num_key_value_heads, past, sizes.head_dim),
        "past_value": (len(mask), sizes.num_key_value_heads, past, sizes.head_dim),
    }
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    cos, sin = rope_tables(sizes)
    feed = {**tensors, "attention_mask": torch.tensor(mask), "cos": cos, "sin": sin}
    assert feed["attention_mask"].shape == (len(mask), past + new)
    return {**{name: t.numpy() for name, t in feed.items()}, "input_ids": np.zeros((len(mask), new), np.int64)}


#: Tokens of the past, new ones, and a mask over both: what takes padding on either side.
EITHER_PADDING: dict[str, tuple[int, int, list[list[int]]]] = {
    "prefill": (0, 6, [[1] * 6]),
    "left padding": (0, 6, [[1] * 6, [0] * 4 + [1] * 2]),
    "right padding": (0, 6, [[1] * 6, [1] * 4 + [0] * 2]),
    "a row of padding alone": (0, 6, [[1] * 6, [0] * 6]),
    "decode after left padding": (5, 1, [[1] * 6, [0] * 3 + [1] * 3]),
    "decode after a gap": (5, 1, [[1] * 6, [1, 1, 0, 0, 0, 1]]),
    "chunk": (5, 3, [[1] * 8]),
}


def assert_exact_under_padding(lowering: ir.passes.InPlacePass, case: str, sizes: HeliumConfig) -> None:
    """One attention, lowered: outputs of real tokens, and all keys and values, are those of the specification."""
    past, new, mask = EITHER_PADDING[case]
    model = attention(sizes)
    assert lowering(model).modified
    feed = attention_feed(sizes, past, new, mask)
    real = np.array(mask)[:, past:] == 1
    found, expected = run(model, feed), attention_eagerly(sizes, feed)
    assert all(np.isfinite(array).all() for array in found)
    np.testing.assert_allclose(found[0][real], expected[0][real], atol=2e-6)
    for have, want in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(have, want, atol=2e-6)


def attention_eagerly(sizes: HeliumConfig, feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """What modeling.py computes of the same operands: the specification."""
    names = ("q", "k", "v", "past_key", "past_value", "attention_mask", "cos", "sin")
    return [t.numpy() for t in causal_attention(*(torch.from_numpy(feed[name]) for name in names), sizes)]
