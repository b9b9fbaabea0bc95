"""Quantization methods, one a file. A method turns rows of a matrix into the layout of MatMulNBits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from helium_onnx.recipe import MatrixSettings, Method


@dataclass(frozen=True)
class QuantizedRows:
    """``data`` uint8 ``[rows, blocks, block_size * bits / 8]``, low bits first; ``scales`` float32 ``[rows, blocks]``;
    ``zero_points`` uint8 ``[rows, ceil(blocks * bits / 8)]``, or None where symmetric (then ``2 ** (bits - 1)``).

    A weight is ``(q - zero_point) * scale``.
    """

    data: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8] | None


Quantizer: TypeAlias = Callable[[NDArray[np.float32], MatrixSettings], QuantizedRows]


def quantizer(method: Method) -> Quantizer:
    """The function of a recipe's ``[quantization] method``."""
    if method == "round-to-nearest":
        from helium_onnx.exporter.quantize.round_to_nearest import quantize_rows

        return quantize_rows
    raise AssertionError(f"a recipe with quantized matrices has a method, not {method!r}")


def dequantize(rows: QuantizedRows, settings: MatrixSettings, columns: int) -> NDArray[np.float32]:
    """The float32 matrix ``[rows, columns]`` that the kernels compute with: the specification of the layout."""
    count, blocks = rows.scales.shape
    codes = _unpack(rows.data.reshape(count, -1), settings.bits).reshape(count, blocks, settings.block_size)
    zero: NDArray[np.uint8] | int = 1 << (settings.bits - 1)
    if rows.zero_points is not None:
        zero = _unpack(rows.zero_points, settings.bits)[:, :blocks, None]
    values = (codes.astype(np.float32) - np.asarray(zero, np.float32)) * rows.scales[:, :, None]
    return np.ascontiguousarray(values.reshape(count, -1)[:, :columns])


def _unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return packed
    return np.stack((packed & 15, packed >> 4), axis=-1).reshape(len(packed), -1)
