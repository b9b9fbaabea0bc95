"""Round-to-nearest: each block's scale from its extremes, each weight to the nearest step."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from helium_onnx.errors import CheckpointError
from helium_onnx.exporter.quantize.packing import QuantizedRows, make_rows, split_blocks
from helium_onnx.recipe import MatrixSettings

_HALF_PRECISION = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def quantize_rows(
    values: NDArray[np.float32],
    settings: MatrixSettings,
    importance: NDArray[np.float32] | None = None,  # noqa: ARG001  one signature for all methods
) -> QuantizedRows:
    """Quantize ``values`` float32 ``[rows, columns]``; a last block that is not full is padded with zeros.

    ``importance`` changes nothing: every weight goes to its nearest step.
    """
    x = split_blocks(values, settings.block_size)
    scale, zero = extremes(x, settings)
    return encode(x, scale, zero, settings)


def extremes(x: Tensor, settings: MatrixSettings) -> tuple[Tensor, Tensor]:
    """Scale and zero point, float32 ``[...]``, from the extremes of blocks ``x`` ``[..., block_size]``.

    Symmetric: the weight of largest magnitude becomes the code 0 (-2^(bits-1) steps from zero), so that all
    2^bits codes are used; its sign is the scale's (as MLAS and llama.cpp's Q4_0 do). Asymmetric: the codes span
    [min, max] of the block, widened to include zero, so that zero is exact.
    """
    levels, half = (1 << settings.bits) - 1, 1 << (settings.bits - 1)
    low, high = x.aminmax(dim=-1)
    if settings.symmetric:
        extreme = torch.where(high > -low, high, low)
        scale = extreme / -half
        zero = torch.full_like(scale, half)
    else:
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = high / levels - low / levels  # each by itself: their difference may overflow
        zero = torch.where(scale > 0, (-low / scale).round_(), torch.zeros_like(scale))
    return usable(scale), zero


def usable(scale: Tensor) -> Tensor:
    """``scale`` with 1 where it is too small: a block of zeros has no scale, and a subnormal one no finite inverse."""
    return torch.where(scale.abs() < torch.finfo(torch.float32).tiny, torch.ones_like(scale), scale)


def storable(scale: Tensor, settings: MatrixSettings) -> Tensor:
    """``scale`` float32, none of them 0, rounded to the type that it is stored in, and none of them to 0.

    Raises:
        CheckpointError: one is beyond that type's range.
    """
    if settings.scales == "float32":
        return scale
    narrow = _HALF_PRECISION[settings.scales]
    rounded = scale.to(narrow).float()
    if not bool(rounded.isfinite().all()):
        most = scale.abs().max()
        raise CheckpointError(
            f"weights are too large for scales in {settings.scales}",
            found=f"a block of weights up to {most * (1 << settings.bits):.2g}",
            expected=f"scales up to {torch.finfo(narrow).max:g}",
            remedy='set scales = "float32" in a recipe for the CPU; for a GPU choose --recipe cuda-bf16',
        )
    least = torch.full_like(scale, torch.finfo(narrow).smallest_normal * torch.finfo(narrow).eps)
    return torch.where(rounded == 0, least.copysign(scale), rounded)


def encode(x: Tensor, scale: Tensor, zero: Tensor, settings: MatrixSettings) -> QuantizedRows:
    """``x`` ``[rows, blocks, block_size]`` in steps of ``scale`` from ``zero``, both float32 ``[rows, blocks]``."""
    scale = storable(scale, settings)
    steps = x * scale.reciprocal().unsqueeze(-1)
    codes = steps.add_(zero.unsqueeze(-1)).round_().clamp_(0, (1 << settings.bits) - 1).to(torch.uint8)
    return make_rows(codes, scale, None if settings.symmetric else zero.to(torch.uint8), settings.bits)
