"""k-quant: near the best scale and zero point there are, and nearer than its peers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matrices import block_sums, heavy_tailed, round_trip, settings, squared_error, weights
from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

from helium_onnx.exporter.quantize import round_to_nearest
from helium_onnx.exporter.quantize.k_quant import quantize_rows, search_scale_zero
from helium_onnx.recipe import MatrixSettings


def exhaustive(x: np.ndarray, how: MatrixSettings, importance: np.ndarray) -> np.ndarray:
    """The least weighted squared error of each block ``[blocks, block_size]``: 300 scales, each with every zero point,
    and the closed form for the codes they give. Float64.
    """
    levels, half = (1 << how.bits) - 1, 1 << (how.bits - 1)
    x, largest = x.astype(np.float64), np.abs(x).max(axis=1).astype(np.float64)
    best = np.full(len(x), np.inf)
    for zero in (half,) if how.symmetric else range(levels + 1):
        for part in np.geomspace(0.2, 4, 300):
            for scale in (largest * part / half, -largest * part / half)[: 2 if how.symmetric else 1]:
                steps = np.clip(np.round(x / scale[:, None]), -zero, levels - zero)
                square = (importance * steps * steps).sum(axis=1)
                fitted = np.divide((importance * x * steps).sum(axis=1), square, out=scale, where=square > 0)
                steps = np.clip(np.round(x / np.where(fitted == 0, 1, fitted)[:, None]), -zero, levels - zero)
                error = (importance * (x - steps * fitted[:, None]) ** 2).sum(axis=1)
                best = np.minimum(best, error)
    return best


@pytest.mark.parametrize(("spread", "allowed"), [(0.0, 1.015), (0.7, 1.02), (1.5, 1.03)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4])
def test_nearly_the_least_error_there_is(bits: int, symmetric: bool, spread: float, allowed: float) -> None:
    """``spread``: importance is lognormal; 1.5 makes one column in forty count a thousand times another."""
    how = settings(bits, symmetric, 16)
    x = np.concatenate([weights(150, 16), heavy_tailed(150, 16)])
    importance = np.exp(spread * weights(1, 16, seed=5)[0])
    ours = squared_error(x, round_trip(quantize_rows, x, how, importance), 16, importance)[:, 0]
    least = exhaustive(x, how, importance)
    assert ours.sum() <= allowed * least.sum()
    assert (ours / least).mean() <= allowed


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4])
def test_importance_moves_the_error_to_where_it_does_not_matter(bits: int, symmetric: bool) -> None:
    x, how = heavy_tailed(64, 128), settings(bits, symmetric)
    importance = np.exp(2 * weights(1, 128, seed=3)[0])
    with_it, without = (round_trip(quantize_rows, x, how, i) for i in (importance, None))
    assert squared_error(x, with_it, 32, importance).sum() < 0.8 * squared_error(x, without, 32, importance).sum()


def test_weights_of_zero_change_nothing_but_the_blocks_they_fill() -> None:
    x, how = heavy_tailed(8, 64), settings(4, False)
    importance = np.ones(64, np.float32)
    importance[:32] = 0
    y, nearest = round_trip(quantize_rows, x, how, importance), round_trip(round_to_nearest.quantize_rows, x, how)
    np.testing.assert_array_equal(y[:, :32], nearest[:, :32])
    assert (y[:, 32:] != nearest[:, 32:]).any()


def test_one_row_of_weights_serves_all_blocks() -> None:
    x = torch.from_numpy(heavy_tailed(50, 32))
    importance = torch.from_numpy(np.exp(weights(1, 32, seed=1)))
    how = settings(4, False)
    for one, many in zip(
        search_scale_zero(x, importance, how), search_scale_zero(x, importance.expand_as(x), how), strict=True
    ):
        torch.testing.assert_close(one, many)
    scale, zero = search_scale_zero(x, None, how)
    assert scale.shape == zero.shape == (50,)
    assert torch.equal(zero, zero.round().clamp(0, 15))


@pytest.mark.parametrize("block_size", [32, 128])
@pytest.mark.parametrize("bits", [2, 4])
def test_closer_than_onnxruntimes_k_quant(bits: int, block_size: int) -> None:
    """In theirs the offset is fitted as a real number and rounded at the end. Measured by our weights, then its."""
    x, how = heavy_tailed(200, block_size), settings(bits, False, block_size)
    codes, scale, zero = quant_tensor_k_quant_cpu(x.copy(), bits, block_size)
    theirs = (codes - zero.astype(np.float64)) * scale
    magnitude = np.abs(x) + np.sqrt(np.square(x).mean(axis=1, keepdims=True))
    ours = round_trip(quantize_rows, x, how)
    assert squared_error(x, ours, block_size).sum() < squared_error(x, theirs, block_size).sum()

    scales, zeros = search_scale_zero(torch.from_numpy(x), torch.from_numpy(magnitude), how)
    s, z = scales.numpy()[:, None], zeros.numpy()[:, None]
    ours = (np.clip(np.round(x / s) + z, 0, (1 << bits) - 1) - z) * s
    ours_error, their_error = (block_sums(magnitude * (x - y) ** 2, block_size) for y in (ours, theirs))
    assert ours_error.sum() < their_error.sum()
