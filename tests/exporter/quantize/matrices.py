"""Matrices and settings for the tests of quantization methods, and what a method loses in its own measure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from helium_onnx.exporter.quantize import hqq, k_quant, round_to_nearest
from helium_onnx.exporter.quantize.packing import QuantizedRows, dequantize
from helium_onnx.recipe import MatrixSettings

BITS = (2, 4, 8)
METHODS = (round_to_nearest, k_quant, hqq)
#: rows and columns: whole blocks of 32, an odd number of them, a last block that is not full, less than one block,
#: one row with one block more than a byte of zero points holds at 2 bits
SHAPES = ((6, 128), (6, 96), (5, 80), (3, 24), (1, 160))
Quantize = Callable[..., QuantizedRows]


def settings(bits: int, symmetric: bool, block_size: int = 32) -> MatrixSettings:
    return MatrixSettings(bits=bits, block_size=block_size, symmetric=symmetric)  # type: ignore[arg-type]


def weights(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def heavy_tailed(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Student's t with three degrees of freedom: some weights are ten times larger than most."""
    return np.random.default_rng(seed).standard_t(3, (rows, columns)).astype(np.float32)


def steps(rows: QuantizedRows, columns: int, block_size: int) -> np.ndarray:
    """Each weight's step |scale|: ``[rows, columns]``."""
    return np.abs(rows.scales).repeat(block_size, axis=1)[:, :columns]


def block_sums(values: np.ndarray, block_size: int) -> np.ndarray:
    """Sums over the blocks of each row: ``[rows, columns]`` to ``[rows, blocks]``."""
    return np.add.reduceat(values, np.arange(0, values.shape[1], block_size), axis=1)


def squared_error(x: np.ndarray, y: np.ndarray, block_size: int, importance: np.ndarray | None = None) -> np.ndarray:
    """k-quant's measure, float64 ``[rows, blocks]``."""
    error = np.square(x.astype(np.float64) - y)
    return block_sums(error if importance is None else error * importance, block_size)


def absolute_error(x: np.ndarray, y: np.ndarray, block_size: int) -> np.ndarray:
    """HQQ's measure, float64 ``[rows, blocks]``."""
    return block_sums(np.abs(x.astype(np.float64) - y), block_size)


def round_trip(
    quantize: Quantize, x: np.ndarray, how: MatrixSettings, importance: np.ndarray | None = None
) -> np.ndarray:
    """``x`` as the kernels see it after ``quantize``."""
    return dequantize(quantize(x, how, importance), how, x.shape[1])
