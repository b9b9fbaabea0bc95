"""Round-to-nearest: the error is what rounding allows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matrices import BITS, SHAPES, round_trip, settings, steps, weights

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
