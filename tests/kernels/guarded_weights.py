"""A process of test_quantized_linear.py: weights that end where readable memory ends, in each shape of matrix.

Prints the instruction sets that came through.
"""

from __future__ import annotations

import ctypes
import mmap

import kernel_graphs
import numpy as np
from kernel_graphs import Array
from quantized_matrix import Matrix

from helium_onnx import kernels


def guarded(array: Array) -> Array:
    """A copy whose last byte is the last before a page that none may read."""
    pages = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    whole = np.frombuffer(mmap.mmap(-1, pages + mmap.PAGESIZE), np.uint8)
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(whole.ctypes.data + pages), mmap.PAGESIZE, 0) == 0
    copy = whole[pages - array.nbytes : pages].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def run(matrix: Matrix, tokens: int, name: str, library: ctypes.CDLL) -> bool:
    x = np.ones((1, tokens, matrix.columns), np.float32)
    feed = dict(zip(("x", "quanta", "scales", "zeros"), map(guarded, (x, *matrix.stored())), strict=True))
    model = kernel_graphs.model(
        "QuantizedLinear", feed, {"y": np.float32}, columns=matrix.columns, rows=[len(matrix.scales)],
        bits=[matrix.bits], block_size=[matrix.block_size], has_zeros=[1], gated=0, last=0,
    )  # fmt: skip
    if not library.helium_use_kernels(name.encode()):
        return False
    session = kernel_graphs.session(model)
    binding = session.io_binding()
    for key, array in feed.items():
        binding.bind_input(key, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    return True


def main() -> None:
    library = kernels.library()
    assert library is not None
    rng = np.random.default_rng(0)
    for name in kernel_graphs.INSTRUCTION_SETS:
        matrices = (
            Matrix.random(rng, rows, columns, bits, block_size, True, half_scales)
            for half_scales in (False, True)
            for bits in (4, 8)
            for block_size in (16, 32, 64, 256)
            for rows, columns in ((1, 16), (16, 64), (33, 208), (40, 272))
        )
        if all(run(matrix, tokens, name, library) for matrix in matrices for tokens in (1, 2, 20)):
            print(name, flush=True)


if __name__ == "__main__":
    main()
