"""HQQ, half-quadratic quantization: scale and zero point of each block by robust regression, without any text.

Source: Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023
(https://mobiusml.github.io/hqq_blog/). Alternately the errors are shrunk (what is left of one is an outlier's, and may
stay), and the quantization is fitted to the weights without them by least squares. The mean absolute error decides
which round is the best.

There z is fitted and real, and s stays that of the extremes. MatMulNBits takes whole zero points, which a fit that
moves z by less than half a code would not change at all: rounded, the published method gives round-to-nearest. So here
s is fitted, z follows where it moves by more, and the descent starts from several scales, since from each it finds only
what is near.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from helium_onnx.exporter.quantize.packing import QuantizedRows, pieces, split_blocks
from helium_onnx.exporter.quantize.round_to_nearest import encode, extremes
from helium_onnx.recipe import MatrixSettings

#: The p of the norm |error|^p behind the shrinkage, as in the source.
NORM = 0.7
#: Errors below BETA ** (-1 / (2 - NORM)) steps are fitted whole. The source's 10 is for errors in the weights'
#: unit; for errors in steps, 3 puts the limit at 0.43: what rounding makes is fitted, what clamping makes an outlier's.
BETA = 3.0
#: Starts: the range of the block in that many steps more or fewer than there are codes.
STARTS = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5)
ITERATIONS = 3


def quantize_rows(
    values: NDArray[np.float32],
    settings: MatrixSettings,
    importance: NDArray[np.float32] | None = None,  # noqa: ARG001  one signature for all methods
) -> QuantizedRows:
    """Quantize ``values`` float32 ``[rows, columns]``; a last block that is not full is padded with zeros.

    ``importance`` changes nothing: the method is one without data. No block's sum of ``|error|`` is larger than
    round-to-nearest's.
    """
    x = split_blocks(values, settings.block_size)
    blocks = x.flatten(0, 1)
    scale, zero = extremes(blocks, settings)
    for rows in pieces(len(blocks), settings.block_size):
        scale[rows], zero[rows] = _Descent(blocks[rows], scale[rows], zero[rows], settings).run()
    return encode(x, scale.view(x.shape[:2]), zero.view(x.shape[:2]), settings)


class _Descent:
    """The descent in one piece.

    Blocks are columns here, so that sums over a block are sums of whole vectors, and weights are in steps of
    round-to-nearest's scale, so that BETA means the same for all.
    """

    def __init__(self, x: Tensor, scale: Tensor, zero: Tensor, settings: MatrixSettings) -> None:
        self.symmetric = settings.symmetric
        self.levels = (1 << settings.bits) - 1
        self.span = 1 << (settings.bits - 1) if settings.symmetric else self.levels
        self.unit, self.first_zero = scale, zero
        self.x = x.T.contiguous().div_(scale)
        self.steps, self.errors, self.limits = (torch.empty_like(self.x) for _ in range(3))
        self.scale, self.zero = torch.ones_like(scale), zero
        self.least = torch.full_like(scale, torch.inf)

    def run(self) -> tuple[Tensor, Tensor]:
        one, below = torch.ones_like(self.unit), -self.x.amin(dim=0).clamp_(max=0)
        self.evaluate(one, self.first_zero)
        for difference in STARTS:
            if self.span + difference < 1:
                continue
            inverse = 1 + difference / self.span
            scale, zero = one / inverse, self.first_zero
            if not self.symmetric:
                zero = (below * inverse).sub_(difference / 2).round_().clamp_(0, self.levels)
            for _ in range(ITERATIONS):
                self.evaluate(scale, zero)
                scale, zero = self.fit(scale, zero)
            self.evaluate(scale, zero)
        scale = self.scale * self.unit
        usable = scale.abs() >= torch.finfo(scale.dtype).tiny
        return torch.where(usable, scale, self.unit), torch.where(usable, self.zero, self.first_zero)

    def evaluate(self, scale: Tensor, zero: Tensor) -> None:
        """Round with ``scale`` and ``zero``; keep both where the mean absolute error is the least so far."""
        torch.mul(self.x, scale.reciprocal(), out=self.steps).round_().clamp_(-zero, self.levels - zero)
        torch.mul(self.steps, scale, out=self.errors)
        torch.sub(self.x, self.errors, out=self.errors)
        size = torch.abs(self.errors, out=self.limits).sum(dim=0)
        better = size < self.least
        self.least = torch.where(better, size, self.least)
        self.scale = torch.where(better, scale, self.scale)
        self.zero = torch.where(better, zero, self.zero)

    def fit(self, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
        """The next scale and zero point, from the steps and errors that :meth:`evaluate` left.

        With e the shrunken errors, sign(e) max(|e| - |e|^(p-1) / BETA, 0), and the weights without them, t = x - e,
        the zero point moves by mean(q - t / s), rounded, and the scale becomes sum(t q) / sum(q^2).
        """
        # What is taken from an error by shrinking it is the error itself, but at most this; finite at 0.
        limit = self.limits.clamp_(min=1e-8).pow_(NORM - 1).div_(BETA)
        rest = self.errors.clamp_(-limit, limit).addcmul_(self.steps, scale)
        if not self.symmetric:
            moved = (self.steps.sum(dim=0) - rest.sum(dim=0) / scale).div_(len(rest)).add_(zero)
            moved = moved.round_().clamp_(0, self.levels)
            self.steps.add_(zero - moved)
            zero = moved
        fitted = rest.mul_(self.steps).sum(dim=0) / self.steps.square_().sum(dim=0)
        # All codes zero, or a fit that turns the block around: stay.
        return torch.where(fitted > 0, fitted, scale), zero
