"""Round-to-nearest: the error is what rounding allows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from matrices import BITS, SHAPES, round_trip, settings, steps, weights

from helium_onnx.errors import CheckpointError
from helium_onnx.exporter.quantize.packing import dequantize, unpack_codes
from helium_onnx.exporter.quantize.round_to_nearest import quantize_rows


@pytest.mark.parametrize("offset", [0.0, 3.0, -3.0], ids=["both signs", "positive", "negative"])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_asymmetric_error_is_half_a_step(shape: tuple[int, int], bits: int, offset: float) -> None:
    x, how = weights(*shape) + np.float32(offset), settings(bits, symmetric=False)
    rows = quantize_rows(x, how)
    error = np.abs(dequantize(rows, how, shape[1]) - x)
    # The zero point is rounded too; still no code is clamped by more than the rounding it would have had anyway.
    assert (error <= steps(rows, shape[1], 32) / 2 * 1.001).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_symmetric_error(shape: tuple[int, int], bits: int) -> None:
    x, how = weights(*shape), settings(bits, symmetric=True)
    rows = quantize_rows(x, how)
    step, half = steps(rows, shape[1], 32), 1 << (bits - 1)
    error = np.abs(dequantize(rows, how, shape[1]) - x)
    # Codes reach half steps on the extreme's side, and half - 1 on the other.
    beyond = x / np.sign(-rows.scales).repeat(32, axis=1)[:, : shape[1]] < -(half - 0.5) * step
    assert (error <= np.where(beyond, step, step / 2) * 1.001).all()


@pytest.mark.parametrize("bits", BITS)
def test_the_symmetric_extreme_is_exact_and_uses_the_lowest_code(bits: int) -> None:
    for extreme in (-2.0, 2.0):
        x = np.linspace(-1, 1, 32, dtype=np.float32)[None]
        x[0, 7] = extreme
        how = settings(bits, symmetric=True)
        rows = quantize_rows(x, how)
        assert rows.scales[0, 0] == -extreme / (1 << (bits - 1))
        assert dequantize(rows, how, 32)[0, 7] == extreme
        assert unpack_codes(torch.from_numpy(rows.data[0]), bits)[0, 7] == 0


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_an_outlier_costs_its_own_block_only(bits: int, symmetric: bool) -> None:
    x = weights(1, 96)
    how = settings(bits, symmetric)
    before = round_trip(quantize_rows, x, how)
    x[0, 40] = 1000.0
    after = round_trip(quantize_rows, x, how)
    assert after[0, 40] == pytest.approx(1000.0, rel=1e-6 if symmetric else 1 / (1 << bits))
    assert (after[0, :32] == before[0, :32]).all()
    assert (after[0, 64:] == before[0, 64:]).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_in_float16(symmetric: bool) -> None:
    """Weights go to the steps of the scale that is stored, so that half a step of it stays the bound."""
    how = dataclasses.replace(settings(4, symmetric), scales="float16")
    x = weights(6, 96)
    rows = quantize_rows(x, how)
    np.testing.assert_array_equal(rows.scales, rows.scales.astype(np.float16))
    np.testing.assert_allclose(rows.scales, quantize_rows(x, settings(4, symmetric)).scales, rtol=2**-11)
    error = np.abs(dequantize(rows, how, 96) - x)
    inside = error <= steps(rows, 96, 32) * (0.5 + 1e-6)
    # At the ends of a block a scale that was rounded down leaves up to 15 steps' roundings more.
    assert (error <= steps(rows, 96, 32) * (0.5 + 15 * 2**-11) + (symmetric * steps(rows, 96, 32) / 2)).all()
    assert inside.mean() > 0.9


@pytest.mark.parametrize("size", [1e-30, 1e-9, 3e-8, 1e-6])
@pytest.mark.parametrize("symmetric", [True, False])
def test_no_scale_in_float16_is_zero(size: float, symmetric: bool) -> None:
    how = dataclasses.replace(settings(4, symmetric), scales="float16")
    x = weights(4, 64) * np.float32(size)
    rows = quantize_rows(x, how)
    assert (np.abs(rows.scales) >= 2.0**-24).all()
    np.testing.assert_array_equal(rows.scales, rows.scales.astype(np.float16))
    # What the coarse steps cost is what float16 cannot tell from 0.
    assert np.abs(dequantize(rows, how, 64) - x).max() <= np.abs(x).max() + 2.0**-24


def test_weights_that_no_scale_in_float16_reaches() -> None:
    how = dataclasses.replace(settings(4, True), scales="float16")
    with pytest.raises(CheckpointError, match=r"too large for scales in float16[\s\S]*scales = \"float32\""):
        quantize_rows(weights(2, 64) * np.float32(1e7), how)
    assert np.isfinite(quantize_rows(weights(2, 64) * np.float32(1e7), settings(4, True)).scales).all()
