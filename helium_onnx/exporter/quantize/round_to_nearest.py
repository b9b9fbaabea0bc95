"""Round-to-nearest: each block's scale from its extremes, each weight to the nearest step."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from helium_onnx.exporter.quantize import QuantizedRows
from helium_onnx.recipe import MatrixSettings


def quantize_rows(values: NDArray[np.float32], settings: MatrixSettings) -> QuantizedRows:
    """Quantize ``values`` float32 ``[rows, columns]``; a last block that is not full is padded with zeros.

    Symmetric: the weight of largest magnitude becomes the code 0 (-2^(bits-1) steps from zero), so that all
    2^bits codes are used; its sign is the scale's (as MLAS and llama.cpp's Q4_0 do). Asymmetric: the codes span
    [min, max] of the block, widened to include zero, so that zero is exact.
    """
    rows, columns = values.shape
    blocks = -(-columns // settings.block_size)
    x = torch.from_numpy(values)
    if blocks * settings.block_size != columns:
        x = F.pad(x, (0, blocks * settings.block_size - columns))
    x = x.view(rows, blocks, settings.block_size)
    levels, half = (1 << settings.bits) - 1, 1 << (settings.bits - 1)
    low, high = x.aminmax(dim=-1)
    if settings.symmetric:
        extreme = torch.where(high > -low, high, low)
        scale = extreme / -half
        zero = torch.full_like(scale, half)
    else:
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = (high - low) / levels
        zero = torch.where(scale > 0, (-low / scale).round_(), torch.zeros_like(scale))
    # A block of zeros has no scale: 1 gives zeros and avoids 0/0. A subnormal scale has no finite inverse.
    scale = torch.where(scale.abs() < torch.finfo(torch.float32).tiny, torch.ones_like(scale), scale)
    codes = (x * scale.reciprocal().unsqueeze(-1)).add_(zero.unsqueeze(-1)).round_().clamp_(0, levels)
    data = _pack(codes.to(torch.uint8).view(rows, -1), settings.bits).view(rows, blocks, -1)
    packed_zero = None if settings.symmetric else _pack(zero.to(torch.uint8), settings.bits).numpy()
    return QuantizedRows(data.numpy(), scale.numpy(), packed_zero)


def _pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes ``[rows, n]`` to bytes, low bits first."""
    if bits == 8:
        return codes
    if codes.shape[1] % 2:
        codes = F.pad(codes, (0, 1))
    return codes[:, 0::2] | (codes[:, 1::2] << 4)
