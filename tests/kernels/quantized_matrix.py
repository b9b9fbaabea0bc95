"""A quantized matrix, and its form in a bundle."""

from __future__ import annotations

import dataclasses

import numpy as np
from kernel_graphs import Array


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Weights (quantum - zero) * scale; quanta and zeros unpacked here, a byte each."""

    columns: int
    bits: int
    block_size: int
    quanta: Array  # [rows, columns, up to a whole block]
    scales: Array  # [rows, blocks], float32 or float16
    zeros: Array | None

    @classmethod
    def random(
        cls, rng: np.random.Generator, rows: int, columns: int, bits: int, block_size: int, has_zeros: bool,
        half_scales: bool = False,
    ) -> Matrix:  # fmt: skip
        blocks = -(-columns // block_size)
        quanta = rng.integers(0, 2**bits, (rows, blocks * block_size), np.uint8)
        scales = rng.uniform(1e-3, 1, (rows, blocks)).astype(np.float16 if half_scales else np.float32)
        zeros = rng.integers(0, 2**bits, (rows, blocks), np.uint8) if has_zeros else None
        return cls(columns, bits, block_size, quanta, scales, zeros)

    def stored(self) -> list[Array]:
        """As the operator takes them."""
        rows, blocks = self.scales.shape
        pack = pack4 if self.bits == 4 else np.asarray
        quanta = pack(self.quanta).reshape(rows, blocks, -1)
        return [quanta, self.scales, *([] if self.zeros is None else [pack(self.zeros)])]

    def centred(self) -> Array:
        """quantum - zero: [rows, blocks, block_size]."""
        rows, blocks = self.scales.shape
        zeros = np.full((rows, blocks), 2 ** (self.bits - 1)) if self.zeros is None else self.zeros
        return self.quanta.reshape(rows, blocks, -1).astype(np.int64) - zeros[:, :, None].astype(np.int64)


def pack4(x: Array) -> Array:
    """Two to a byte along the last axis, the lower half first."""
    if x.shape[1] % 2:
        x = np.pad(x, ((0, 0), (0, 1)))
    return x[:, ::2] | x[:, 1::2] << 4
