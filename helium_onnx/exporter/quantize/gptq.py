"""GPTQ: round a matrix column by column, and let the columns that follow make up for each column's error.

What counts is the error of the matrix's output on real inputs x, ``|x (Q - W)^T|^2 = tr((Q - W) H (Q - W)^T)`` with
``H = sum of x^T x``. With a column rounded, the best change of the columns to its right is in closed form, from the
Cholesky factor of H's inverse. Source: Frantar, Ashkboos, Hoefler, Alistarh: GPTQ, arXiv:2210.17323, algorithm 1.

Columns go from left to right. An order by importance would put neighbours of one block far apart, which MatMulNBits
allows only with scales that are fixed beforehand; on helium-docs-7m that form gained nothing.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from helium_onnx.exporter.quantize.k_quant import search_scale_zero
from helium_onnx.exporter.quantize.packing import QuantizedRows, make_rows
from helium_onnx.exporter.quantize.round_to_nearest import storable
from helium_onnx.recipe import MatrixSettings

#: Added to H's diagonal, as parts of its mean: inputs that the text happened not to have still count, and the more so
#: the fewer tokens there are for each column. Without the second term GPTQ did worse than plain rounding on
#: helium-docs-7m with 500 tokens; with it, it is never worse than k-quant, and better from 2,000 tokens on.
DAMPING, DAMPING_PER_COLUMN = 0.05, 4.0
#: Rows that go together; bounds memory, and keeps a block of columns in the processor's cache.
_ROWS = 4096
_FEWEST_ROWS = 64


@dataclass(frozen=True)
class InverseHessian:
    """The inverse of the damped H is ``upper^T upper``; ``upper`` float32 ``[columns, columns]`` is triangular."""

    upper: Tensor

    @classmethod
    def of(cls, inputs: Tensor, damping: float | None = None) -> InverseHessian:
        """From the inputs float32 ``[tokens, columns]``. A column that was always 0 gets H = 1.

        ``damping`` is by default as many tokens for so many columns ask for.

        Raises:
            ValueError: the inputs are not finite.
        """
        tokens, columns = inputs.shape
        if damping is None:
            damping = DAMPING + DAMPING_PER_COLUMN * columns / max(1, tokens)
        hessian = _gram(inputs)
        diagonal = hessian.diagonal()
        mean = float(diagonal.mean())
        if not bool(torch.isfinite(diagonal).all()):
            raise ValueError("the inputs of the matrix are not finite")
        scale = mean if mean > 0 else 1.0
        hessian /= scale  # so that float32 serves, whatever the inputs' size
        diagonal[diagonal == 0] = 1.0
        for _ in range(8):
            diagonal += damping
            # With L the lower factor of H turned by 180 degrees, the upper one of H's inverse is L's inverse turned
            # back: one factorization, and no inverse of H.
            factor, failed = torch.linalg.cholesky_ex(hessian.flip(0, 1))
            if not int(failed):
                return cls(_inverse_of_lower(factor).flip(0, 1).div_(scale**0.5))
            damping *= 4  # rounding made an eigenvalue negative: H is nearly singular
        raise ValueError("the inputs' second moments cannot be inverted")

    def divide(self, rows: Tensor) -> Tensor:
        """``rows H^-1``, float32 ``[rows, columns]``."""
        half = len(self.upper) // 2
        a, b, c = self.upper[:half, :half], self.upper[:half, half:], self.upper[half:, half:]
        # x U^T, then that times U, without the quarter of U that is 0
        left = rows[:, :half] @ a.T + rows[:, half:] @ b.T
        right = rows[:, half:] @ c.T
        return torch.cat((left @ a, left @ b + right @ c), dim=1)


def _gram(inputs: Tensor) -> Tensor:
    """``inputs^T inputs``, float32 ``[columns, columns]``; a product that lies below the diagonal is copied."""
    columns = inputs.shape[1]
    result = torch.empty(columns, columns)
    step = -(-columns // 4)
    for first in range(0, columns, step):
        here = slice(first, min(first + step, columns))
        result[here, first:] = inputs[:, here].T @ inputs[:, first:]
        result[here.stop :, here] = result[here, here.stop :].T
    return result


def _inverse_of_lower(factor: Tensor) -> Tensor:
    """The inverse of a lower triangular matrix, by halves: a third of what solving for the identity takes."""
    size = len(factor)
    if size <= 512:
        inverse: Tensor = torch.linalg.solve_triangular(factor, torch.eye(size), upper=False)
        return inverse
    half = size // 2
    result = torch.zeros_like(factor)
    result[:half, :half] = _inverse_of_lower(factor[:half, :half])
    result[half:, half:] = _inverse_of_lower(factor[half:, half:])
    result[half:, :half] = -(result[half:, half:] @ (factor[half:, :half] @ result[:half, :half]))
    return result


def corrected(weight: Tensor, missing: Tensor, hessian: InverseHessian) -> Tensor:
    """The matrix that, on the inputs of ``hessian``, also adds what is missing from the output: least squares.

    ``weight`` float32 ``[rows, columns]``; ``missing`` float32 ``[rows, columns]`` is the sum of
    ``(wanted - x weight^T)^T x`` over the inputs x.
    """
    return weight + hessian.divide(missing)


def quantize(weight: Tensor, hessian: InverseHessian, settings: MatrixSettings) -> tuple[QuantizedRows, Tensor]:
    """``weight`` float32 ``[rows, columns]`` in the layout of MatMulNBits, and as the kernel will see it (float32)."""
    threads = torch.get_num_threads()
    pieces = torch.split(weight, min(_ROWS, max(_FEWEST_ROWS, -(-len(weight) // threads))))
    # Rows know nothing of each other: one thread for each piece. Operators on one column are too short to be shared
    # between threads themselves; where something else runs on the machine, waiting for each other took 20 times longer.
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        parts = list(pool.map(lambda piece: _rows(piece, hessian.upper, settings), pieces))
    codes, scales, zeros = (torch.cat(tensors, dim=-1) for tensors in zip(*parts, strict=True))
    blocks = scales.shape[0]
    codes = codes.T.view(len(weight), blocks, settings.block_size)
    values = (codes.float() - zeros.T.unsqueeze(-1)).mul_(scales.T.unsqueeze(-1))
    zero = None if settings.symmetric else zeros.T.to(torch.uint8).contiguous()
    packed = make_rows(codes, scales.T, zero, settings.bits)
    return packed, values.flatten(1)[:, : weight.shape[1]].contiguous()


def _rows(weight: Tensor, upper: Tensor, settings: MatrixSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 ``[blocks * block_size, rows]``, scales and zero points float32 ``[blocks, rows]``."""
    with torch.inference_mode():  # which is each thread's own
        return _column_by_column(weight, upper, settings)


def _column_by_column(weight: Tensor, upper: Tensor, settings: MatrixSettings) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = weight.shape
    size, levels = settings.block_size, (1 << settings.bits) - 1
    blocks = -(-columns // size)
    rest = weight.T.contiguous()  # a column is one stretch of memory here
    codes = torch.empty(blocks * size, rows, dtype=torch.uint8)
    scales, zeros = torch.empty(blocks, rows), torch.empty(blocks, rows)
    diagonal = upper.diagonal()
    for block, first in enumerate(range(0, columns, size)):
        last = min(first + size, columns)
        x = rest[first:last]
        # The error of a column, once those to its right have made up for it, counts 1 / upper[c, c]^2.
        weights = F.pad(diagonal[first:last].square().reciprocal(), (0, size - len(x)))
        padded = F.pad(x.T, (0, size - len(x))).contiguous()
        scale, zero = search_scale_zero(padded, weights[None], settings, coarse=True)
        scale = storable(scale, settings)
        scales[block], zeros[block] = scale, zero
        inverse, errors = scale.reciprocal(), torch.empty_like(x)
        for c in range(len(x)):
            code = torch.mul(x[c], inverse).add_(zero).round_().clamp_(0, levels)
            codes[first + c] = code
            error = torch.sub(x[c], code.sub_(zero).mul_(scale), out=errors[c]).div_(diagonal[first + c])
            if c + 1 < len(x):
                x[c + 1 :].addr_(upper[first + c, first + c + 1 : last], error, alpha=-1)
        codes[last : first + size] = zero.to(torch.uint8)  # a last block that is not full ends in zeros
        rest[last:].addmm_(upper[first:last, last:].T, errors, alpha=-1)
    return codes, scales, zeros
