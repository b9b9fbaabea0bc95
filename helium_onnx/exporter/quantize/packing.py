"""The layout of MatMulNBits and GatherBlockQuantized: codes in blocks along a row, packed low bits first.

Source: ONNX Runtime 1.31.1, the operators' schemas. ``dequantize`` is its specification.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from helium_onnx.recipe import MatrixSettings

#: Weights in a piece: 1 MB of float32. Searches ran twice as fast as with 8 MB.
_PIECE = 1 << 18


@dataclass(frozen=True)
class QuantizedRows:
    """``data`` uint8 ``[rows, blocks, block_size * bits / 8]``, low bits first; ``scales`` float32 ``[rows, blocks]``;
    ``zero_points`` uint8 ``[rows, ceil(blocks * bits / 8)]``, or None where symmetric (then ``2 ** (bits - 1)``).

    A weight is ``(q - zero_point) * scale``.
    """

    data: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8] | None


def split_blocks(values: NDArray[np.float32], block_size: int) -> Tensor:
    """``values`` float32 ``[rows, columns]`` as ``[rows, blocks, block_size]``, a last block padded with zeros."""
    rows, columns = values.shape
    x = torch.from_numpy(values)
    if columns % block_size:
        x = F.pad(x, (0, -columns % block_size))
    return x.view(rows, -1, block_size)


def pieces(blocks: int, block_size: int) -> Iterator[slice]:
    """Ranges of blocks so small that some float32 buffers of their size stay in a processor's cache."""
    step = max(1, _PIECE // block_size)
    return (slice(first, first + step) for first in range(0, blocks, step))


def make_rows(codes: Tensor, scales: Tensor, zero: Tensor | None, bits: int) -> QuantizedRows:
    """The layout of ``codes`` uint8 ``[rows, blocks, block_size]``, ``scales`` float32 ``[rows, blocks]`` and ``zero``
    uint8 ``[rows, blocks]``, None where symmetric.
    """
    rows, blocks, _ = codes.shape
    return QuantizedRows(
        pack_codes(codes.reshape(rows, -1), bits).view(rows, blocks, -1).numpy(),
        scales.contiguous().numpy(),
        None if zero is None else pack_codes(zero, bits).numpy(),
    )


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes ``[rows, n]`` to bytes ``[rows, ceil(n * bits / 8)]``, low bits first, the last one's rest zero."""
    each = 8 // bits
    if codes.shape[1] % each:
        codes = F.pad(codes, (0, -codes.shape[1] % each))
    packed = codes[:, ::each].clone()
    for i in range(1, each):
        packed |= codes[:, i::each] << (i * bits)
    return packed


def unpack_codes(packed: Tensor, bits: int) -> Tensor:
    """The inverse of :func:`pack_codes`, up to its padding: uint8 ``[rows, bytes]`` to ``[rows, bytes * 8 / bits]``."""
    parts = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return torch.stack(parts, dim=-1).view(len(packed), -1)


def dequantize(rows: QuantizedRows, settings: MatrixSettings, columns: int) -> NDArray[np.float32]:
    """The float32 matrix ``[rows, columns]`` that the kernels compute with: the specification of the layout."""
    count, blocks = rows.scales.shape
    data = torch.from_numpy(rows.data.reshape(count, -1))
    codes = unpack_codes(data, settings.bits).view(count, blocks, settings.block_size)
    zero = torch.full((count, blocks), 1 << (settings.bits - 1))
    if rows.zero_points is not None:
        zero = unpack_codes(torch.from_numpy(rows.zero_points), settings.bits)[:, :blocks]
    values = (codes.float() - zero.float().unsqueeze(-1)) * torch.from_numpy(rows.scales).unsqueeze(-1)
    return np.ascontiguousarray(values.view(count, -1)[:, :columns].numpy())
