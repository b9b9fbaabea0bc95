"""k-quant: scale and zero point of each block by a search for the least weighted squared error.

After llama.cpp's ``make_qx_quants`` and ``make_qkx2_quants`` (ggml/src/ggml-quants.c): try a grid of scales around that
of round-to-nearest, round the weights with each, then take the scale that fits these codes best, in closed form. Here
zero points are whole codes, as MatMulNBits stores them, so an offset is tried where llama.cpp solves for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from helium_onnx.exporter.quantize.packing import QuantizedRows, pieces, split_blocks
from helium_onnx.exporter.quantize.round_to_nearest import encode, extremes
from helium_onnx.recipe import MatrixSettings

#: Scales tried near round-to-nearest's: its range in up to 3 steps more or fewer.
_NEAR, _COARSE = 16, 6
#: Scales tried beyond, down to a sixth, where errors count unequally: the largest weights may be the least important.
_WIDE, _FINEST = 8, 6.0
#: Then around the best so far, with the zero points beside its own. The whole comes within 0.2 % of the error of an
#: exhaustive search on blocks of 32 or more (importance lognormal with sigma 1.5: 1 %), and within 1 % on those of 16.
_AROUND = (0.94, 0.97, 1.0, 1.03, 1.06)


def quantize_rows(
    values: NDArray[np.float32], settings: MatrixSettings, importance: NDArray[np.float32] | None = None
) -> QuantizedRows:
    """Quantize ``values`` float32 ``[rows, columns]``; a last block that is not full is padded with zeros.

    ``importance`` float32 ``[columns]``, not negative: the mean square of what each column is multiplied with. It is
    the weight of the squared errors, as it is in the layer's output; without it all weigh alike. (llama.cpp's weights
    that grow with the magnitude, times importance or alone, gave a higher loss on a trained Helium.)
    """
    x = split_blocks(values, settings.block_size)
    weights = None
    if importance is not None:
        weights = split_blocks(importance[None], settings.block_size).expand_as(x).flatten(0, 1)
    scale, zero = search_scale_zero(x.flatten(0, 1), weights, settings)
    return encode(x, scale.view(x.shape[:2]), zero.view(x.shape[:2]), settings)


def search_scale_zero(
    x: Tensor, weights: Tensor | None, settings: MatrixSettings, *, coarse: bool = False
) -> tuple[Tensor, Tensor]:
    """Scale and zero point, float32 ``[rows]``, of each row of ``x`` float32 ``[rows, block_size]``, taken as a block.

    They minimize the sum of ``weights * error ** 2``; ``weights`` float32 ``[rows or 1, block_size]`` are not negative
    and finite, None means that all errors count alike. The result is never worse than round-to-nearest's, which it is
    where all weights are 0. Zero points are whole, 0 to 2^bits - 1 (symmetric: 2^(bits-1)); a symmetric scale may be
    negative. ``coarse`` tries a fifth as much: what GPTQ gains from the rest is not worth its time.
    """
    scale, zero = extremes(x, settings)
    for rows in pieces(len(x), x.shape[1]):
        w = weights if weights is None or len(weights) == 1 else weights[rows]
        scale[rows], zero[rows] = _Search(x[rows], w, scale[rows], zero[rows], settings, coarse).run()
    return scale, zero


class _Search:
    """The search in one piece.

    Blocks are columns here, so that sums over a block are sums of whole vectors, and weights are in steps of
    round-to-nearest's scale, so that squares neither overflow nor vanish.
    """

    def __init__(
        self, x: Tensor, weights: Tensor | None, scale: Tensor, zero: Tensor, settings: MatrixSettings, coarse: bool
    ) -> None:
        self.settings, self.coarse = settings, coarse
        self.weighs = weights is not None and not coarse
        self.levels = (1 << settings.bits) - 1
        self.unit, self.first_zero = scale, zero
        self.x = x.T.contiguous().div_(scale)
        if weights is None:
            weights = torch.ones_like(x[:1])
        self.weights = (weights / weights.amax(dim=-1, keepdim=True)).T.contiguous()
        self.weighted = self.x * self.weights
        self.steps = torch.empty_like(self.x)
        self.product = torch.empty_like(self.x)
        self.scale, self.zero = torch.ones_like(scale), zero
        self.explained = torch.full_like(scale, -1.0)

    def run(self) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(self.unit)
        self.consider(one, self.first_zero)
        for candidate in self.grid():
            self.consider(*candidate)
        inverse, zero = self.scale.reciprocal(), self.zero
        for shift in (0,) if self.settings.symmetric else (-1, 0, 1):
            for factor in _AROUND[1:4] if self.coarse else _AROUND:
                self.consider(inverse * factor, (zero + shift).clamp_(0, self.levels))
        # The comparison so far is one of large sums' small differences; and a scale may have become too small.
        better = self.error(self.scale, self.zero) < self.error(one, self.first_zero)
        scale = self.scale * self.unit
        better &= scale.abs() >= torch.finfo(scale.dtype).tiny
        return torch.where(better, scale, self.unit), torch.where(better, self.zero, self.first_zero)

    def grid(self) -> Iterator[tuple[float, Tensor]]:
        """Inverse scales and zero points to try.

        Where the range does not fit the codes, it is cut at both ends alike. With 4 codes, and where errors count
        unequally, it matters which end is cut, and (symmetric) which one has the odd code: then all ways are tried.
        """
        span = 1 << (self.settings.bits - 1) if self.settings.symmetric else self.levels
        near = torch.linspace(max(-3, 1 - span), 3, _COARSE if self.coarse else _NEAR).div_(span).add_(1).tolist()
        wide = torch.logspace(math.log10(near[-1]), math.log10(_FINEST), _WIDE + 1).tolist()[1:] if self.weighs else []
        below = -self.x.amin(dim=0).clamp_(max=0)
        for inverse in near + wide:
            thorough = self.levels == 3 or self.weighs
            if self.settings.symmetric:
                yield inverse, self.first_zero
                if thorough:
                    yield -inverse, self.first_zero
            else:
                for end in (0.0, 0.5, 1.0) if thorough else (0.5,):
                    beyond = self.levels * (inverse - 1)
                    yield inverse, (below * inverse).sub_(end * beyond).round_().clamp_(0, self.levels)

    def consider(self, inverse: Tensor | float, zero: Tensor) -> None:
        """Round with ``1 / inverse`` and ``zero``, fit the scale to the codes, keep it where it is the best so far.

        With steps q from zero and the fitted scale s = sum(w x q) / sum(w q^2), the error sum(w (x - s q)^2) is
        sum(w x^2) - s sum(w x q): the last term is to be the largest. NaN (a block without weights) never is.
        """
        steps = self.round(inverse, zero)
        along = torch.mul(self.weighted, steps, out=self.product).sum(dim=0)
        square = steps.square_().mul_(self.weights).sum(dim=0)
        fitted = along / square
        explained = fitted * along
        better = explained > self.explained
        self.explained = torch.where(better, explained, self.explained)
        self.scale = torch.where(better, fitted, self.scale)
        self.zero = torch.where(better, zero, self.zero)

    def round(self, inverse: Tensor | float, zero: Tensor) -> Tensor:
        """Whole steps from zero, within the codes."""
        return torch.mul(self.x, inverse, out=self.steps).round_().clamp_(-zero, self.levels - zero)

    def error(self, scale: Tensor, zero: Tensor) -> Tensor:
        steps = self.round(scale.reciprocal(), zero)
        return steps.mul_(scale).sub_(self.x).square_().mul_(self.weights).sum(dim=0)
