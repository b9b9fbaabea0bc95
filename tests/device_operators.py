"""The operators of a CUDA bundle's decode.native.onnx in numpy: their specification, and graphs run by it.

Activations are float32; weights, tables, keys and values are float16 or bfloat16, here ``T``. ``B`` rows, ``K``
columns, ``N`` rows of a matrix, ``V`` ids, ``H`` heads over ``G`` key/value heads of ``D``, ``C`` tokens of context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

DOMAIN = "helium_onnx.kernels"

Array = NDArray[Any]


def unpack(packed: Array, bits: int) -> Array:
    """uint8 ``[rows, bytes]`` to codes ``[rows, bytes * 8 / bits]``, low bits first."""
    parts = [packed >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(len(packed), -1)


def matrix(values: Sequence[Array], bits: int, block_size: int, columns: int) -> Array:
    """Float32 ``[N, K]`` of ``W T [N, K]`` (16 bits), or of quanta uint8, scales ``T [N, blocks]`` and zero points
    uint8 ``[N, ceil(blocks * bits / 8)]`` (2 ** (bits - 1) where there are none). Quanta are ``[N, blocks, bytes]``,
    the last block padded, or ``[N, K * bits / 8]``.
    """
    if bits == 16:
        return values[0].astype(np.float32)
    quanta, scales = values[0].reshape(len(values[0]), -1), values[1].astype(np.float32)
    zeros = unpack(values[2], bits)[:, : scales.shape[1]] if len(values) == 3 else np.full(scales.shape, 1 << bits - 1)
    scale, zero = (np.repeat(x, block_size, axis=1)[:, :columns] for x in (scales, zeros))
    return (unpack(quanta, bits)[:, :columns].astype(np.float32) - zero.astype(np.float32)) * scale


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def device_embedding(
    ids: Array, *table: Array, bits: int, block_size: int, has_zeros: int, columns: int
) -> tuple[Array, ...]:
    """``ids`` int64 ``[B, 1]`` and a table of ``V`` rows give float32 ``[B, 1, K]``."""
    assert len(table) == (1 if bits == 16 else 2 + has_zeros)
    return (matrix(table, bits, block_size, columns)[ids],)


def device_linear(
    x: Array,
    *rest: Array,
    columns: int,
    rows: Sequence[int],
    bits: Sequence[int],
    block_size: Sequence[int],
    has_zeros: Sequence[int],
    norm: int,
    residual: int,
    epsilon: float,
    gated: int,
) -> tuple[Array, ...]:
    """``x`` float32 ``[B, 1, K]``; ``rest`` is the norm's weight ``T [K]`` where ``norm``, float32 ``[B, 1, N]`` to add
    where ``residual``, and each matrix. Gives the products one behind the other; of two matrices ``gated`` silu(first)
    times second.
    """
    values = list(rest)
    if norm:
        mean = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
        x = x / np.sqrt(mean + np.float32(epsilon)) * values.pop(0).astype(np.float32)
    added = values.pop(0) if residual else np.float32(0)
    products = []
    for n, b, size, zeros in zip(rows, bits, block_size, has_zeros, strict=True):
        count = 1 if b == 16 else 2 + zeros
        weights = matrix(values[:count], b, size, columns)
        assert weights.shape == (n, columns)
        products.append(x @ weights.T)
        del values[:count]
    assert not values, "more inputs than the attributes say"
    if gated:
        assert len(products) == 2
        products = [silu(products[0]) * products[1]]
    y = np.concatenate(products, axis=-1)
    assert not residual or added.shape == y.shape
    return ((y + added).astype(np.float32),)


def rotate(x: Array, cos: Array, sin: Array, interleaved: int) -> Array:
    """``x`` float32 ``[heads, D]`` by ``cos``, ``sin`` ``[D / 2]``: pairs are neighbours, or halves."""
    first, second = (x[:, ::2], x[:, 1::2]) if interleaved else np.split(x, 2, axis=1)
    one, two = first * cos - second * sin, second * cos + first * sin
    return np.stack((one, two), axis=-1).reshape(x.shape) if interleaved else np.concatenate((one, two), axis=1)


def attend(query: Array, keys: Array, values: Array) -> Array:
    """``query [H, D]`` over ``keys`` and ``values [H, tokens, D]``, all float32: ``[H, D]``."""
    scores = np.einsum("hd,htd->ht", query, keys) / np.float32(np.sqrt(query.shape[1]))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed: Array = np.einsum("ht,htd->hd", weights / weights.sum(-1, keepdims=True), values)
    return mixed


def codes(x: Array, scales: Array) -> Array:
    """``x / scales`` in int8: the nearest, of two the even one; 0 for what is no number."""
    return np.nan_to_num(np.clip(np.rint(x / scales), -128, 127), nan=0).astype(np.int8)


def device_attention(
    qkv: Array,
    past_key: Array,
    past_value: Array,
    seqlens_k: Array,
    cos: Array,
    sin: Array,
    *scales: Array,
    num_heads: int,
    kv_num_heads: int,
    head_dim: int,
    interleaved: int,
) -> tuple[Array, ...]:
    """``qkv`` float32 ``[B, 1, (H + 2 G) * D]``, pasts ``T [B, G, C, D]``, ``seqlens_k`` int32 ``[B]`` (the new token's
    position), tables ``T [positions, D / 2]`` give float32 ``[B, 1, H * D]`` and pasts with the new key and value. What
    lies behind the new token is not read.

    Pasts of int8 are codes of ``scales`` (of keys, of values), float32 ``[1, G, 1, D]`` each: a number is its code
    times its channel's scale, that of the new token too. What no code can say, an infinity or NaN among its numbers,
    makes NaN of the output of all heads that read it.
    """
    keys, values = past_key.copy(), past_value.copy()
    assert (keys.dtype == np.int8) == (len(scales) == 2)
    steps = [x.reshape(kv_num_heads, head_dim) for x in scales]
    output = np.empty((len(qkv), 1, num_heads * head_dim), np.float32)
    for row, position in enumerate(seqlens_k.tolist()):
        heads = qkv[row, 0].reshape(num_heads + 2 * kv_num_heads, head_dim)
        query, key, value = np.split(heads, [num_heads, num_heads + kv_num_heads])
        c, s = cos[position].astype(np.float32), sin[position].astype(np.float32)
        new, group = (rotate(key, c, s, interleaved), value), num_heads // kv_num_heads
        seen = []
        for i, (cache, numbers) in enumerate(zip((keys, values), new, strict=True)):
            cache[row, :, position] = codes(numbers, steps[i]) if scales else numbers.astype(cache.dtype)
            kept = cache[row, :, : position + 1].astype(np.float32)
            seen.append(np.repeat(kept * steps[i][:, None] if scales else kept, group, axis=0))
        mixed = attend(rotate(query, c, s, interleaved), *seen)
        if scales:
            mixed[np.repeat(~np.isfinite(new).all((0, 2)), group)] = np.nan
        output[row, 0] = mixed.reshape(-1)
    return output, keys, values


def device_argmax(logits: Array) -> tuple[Array, ...]:
    """Float32 ``[B, 1, V]`` to int64 ``[B, 1]``: of several largest the first."""
    return (logits.argmax(-1),)


OPERATORS: dict[str, Callable[..., tuple[Array, ...]]] = {
    "DeviceEmbedding": device_embedding,
    "DeviceLinear": device_linear,
    "DeviceAttention": device_attention,
    "DeviceAttentionInt8": device_attention,
    "DeviceArgMax": device_argmax,
}


class NativeGraph:
    """A graph of these operators alone, with its weights; called with its inputs by name, it gives its outputs."""

    def __init__(self, path: Path) -> None:
        self.graph = onnx.load(path).graph
        self._weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.graph.initializer}
        assert {node.domain for node in self.graph.node} == {DOMAIN}

    def __call__(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        assert set(feed) == {value.name for value in self.graph.input}
        known = {**self._weights, **feed}
        for node in self.graph.node:
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            results = OPERATORS[node.op_type](*(known[name] for name in node.input), **attributes)
            known.update(zip(node.output, results, strict=True))
        for value in self.graph.output:
            dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            assert known[value.name].dtype == dtype, value.name
        return {value.name: known[value.name] for value in self.graph.output}
