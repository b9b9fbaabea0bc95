"""The layout: packing has an inverse, and ONNX Runtime reads it as `dequantize` says."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from matrices import BITS, settings, weights
from onnx import TensorProto, helper

from helium_onnx.exporter.quantize.packing import dequantize, make_rows, pack_codes, split_blocks, unpack_codes
from helium_onnx.exporter.quantize.round_to_nearest import quantize_rows


def test_low_bits_come_first() -> None:
    codes = torch.tensor([[1, 2, 3, 0, 3]], dtype=torch.uint8)
    assert pack_codes(codes, 2).tolist() == [[0b00_11_10_01, 0b11]]
    assert pack_codes(codes, 4).tolist() == [[0x21, 0x03, 0x03]]
    assert pack_codes(codes, 8).tolist() == codes.tolist()


@given(st.sampled_from(BITS), st.integers(1, 4), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_unpacking_is_the_inverse(bits: int, rows: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, count), dtype=torch.uint8, generator=generator)
    packed = pack_codes(codes, bits)
    assert packed.shape == (rows, -(-count * bits // 8))
    unpacked = unpack_codes(packed, bits)
    assert torch.equal(unpacked[:, :count], codes)
    assert not unpacked[:, count:].any()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_a_weight_is_its_code_less_the_zero_point_times_the_scale(bits: int, symmetric: bool) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1 << bits, (3, 5, 16), dtype=np.uint8)
    scales = rng.standard_normal((3, 5)).astype(np.float32)
    zero = None if symmetric else rng.integers(0, 1 << bits, (3, 5), dtype=np.uint8)
    rows = make_rows(
        torch.from_numpy(codes), torch.from_numpy(scales), None if zero is None else torch.from_numpy(zero), bits
    )
    assert rows.data.shape == (3, 5, 2 * bits)
    origin = np.full((3, 5), 1 << (bits - 1), np.uint8) if zero is None else zero
    expected = (codes.astype(np.float32) - origin[:, :, None].astype(np.float32)) * scales[:, :, None]
    np.testing.assert_array_equal(dequantize(rows, settings(bits, symmetric, 16), 75), expected.reshape(3, 80)[:, :75])


def test_the_last_block_is_padded_with_zeros() -> None:
    x = weights(3, 40)
    blocks = split_blocks(x, 32)
    assert blocks.shape == (3, 2, 32)
    np.testing.assert_array_equal(blocks.reshape(3, 64)[:, :40], x)
    assert not blocks[:, 1, 8:].any()


def one_node(op: str, inputs: dict[str, np.ndarray], feed: dict[str, np.ndarray], **attributes: int) -> np.ndarray:
    """The output of one ``com.microsoft`` node over constant ``inputs`` and the run's ``feed``, in operator order."""
    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}
    names = ["x", *inputs] if op == "MatMulNBits" else [next(iter(inputs)), "x", *list(inputs)[1:]]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], domain="com.microsoft", **attributes)],
        "one",
        [helper.make_tensor_value_info("x", kinds[feed["x"].dtype], list(feed["x"].shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in inputs.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)], ir_version=10
    )
    (y,) = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)
    result: np.ndarray = y
    return result


@pytest.mark.parametrize(("accuracy_level", "tolerance"), [(1, 1e-5), (4, 2e-2)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("rows", "columns", "block_size"), [(24, 128, 32), (24, 96, 32), (17, 80, 32), (5, 144, 64), (3, 160, 32)]
)
@pytest.mark.parametrize("tokens", [1, 9])
def test_matmulnbits_reads_the_layout(
    rows: int,
    columns: int,
    block_size: int,
    bits: int,
    symmetric: bool,
    accuracy_level: int,
    tolerance: float,
    tokens: int,
) -> None:
    how = settings(bits, symmetric, block_size)
    parts = quantize_rows(weights(rows, columns), how)
    x = weights(tokens, columns, seed=1)
    constants = {"b": parts.data, "scales": parts.scales}
    if parts.zero_points is not None:
        constants["zero_points"] = parts.zero_points
    y = one_node(
        "MatMulNBits", constants, {"x": x},
        K=columns, N=rows, bits=bits, block_size=block_size, accuracy_level=accuracy_level,
    )  # fmt: skip
    expected = x @ dequantize(parts, how, columns).T
    assert reference.error(y, expected) <= tolerance


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("rows", "columns", "block_size"), [(24, 128, 32), (24, 96, 32), (9, 64, 64), (3, 160, 32)])
def test_gatherblockquantized_reads_the_layout(
    rows: int, columns: int, block_size: int, bits: int, symmetric: bool
) -> None:
    how = settings(bits, symmetric, block_size)
    parts = quantize_rows(weights(rows, columns), how)
    constants = {"data": parts.data.reshape(rows, -1)[:, : columns * bits // 8], "scales": parts.scales}
    if parts.zero_points is not None:
        constants["zero_points"] = parts.zero_points
    ids = np.array([[0, rows - 1, 2]])
    y = one_node(
        "GatherBlockQuantized", constants, {"x": ids},
        bits=bits, block_size=block_size, gather_axis=0, quantize_axis=1,
    )  # fmt: skip
    np.testing.assert_array_equal(y, dequantize(parts, how, columns)[ids])
