"""QuantizedLinear against its definition in kernels.h, to the last bit, however rows are grouped and by whatever
instructions.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import kernel_graphs
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kernel_graphs import Array, assert_same_bits
from quantized_matrix import Matrix

pytestmark = pytest.mark.usefixtures("native_kernels")
each_instruction_set = pytest.mark.usefixtures("instruction_set")

#: Of the sum of the terms' magnitudes: what roundings to float32 leave, one for each block.
TOLERANCE = 1e-6


def quantized(x: Array, block_size: int) -> tuple[Array, Array]:
    """Rows of activations [rows, columns] as quanta [rows, blocks, block_size] and scales [rows, blocks]."""
    x = np.pad(x, ((0, 0), (0, -x.shape[1] % block_size))).reshape(len(x), -1, block_size)
    peak = np.abs(x).max(2)
    inverse = np.divide(np.float32(127), peak, out=np.zeros_like(peak), where=peak > 1e-36)
    return np.rint(x * inverse[:, :, None]).astype(np.int64), peak / np.float32(127)


def in_float64(x: Array, matrix: Matrix) -> tuple[Array, Array]:
    """Products [rows of x, rows of the matrix], and for each the sum of its terms' magnitudes."""
    quanta, scales = quantized(x, matrix.block_size)
    activations = (quanta * scales[:, :, None].astype(np.float64)).reshape(len(x), -1)
    weights = (matrix.centred() * matrix.scales[:, :, None].astype(np.float64)).reshape(len(matrix.scales), -1)
    return activations @ weights.T, np.abs(activations) @ np.abs(weights).T


def in_float32(x: Array, matrix: Matrix) -> Array:
    """The same bit by bit: of each block, in order, sum = fma(whole number, weight scale * activation scale, sum)."""
    quanta, scales = quantized(x, matrix.block_size)
    dots, weight_scales = np.einsum("mbk,nbk->bmn", quanta, matrix.centred()), matrix.scales.astype(np.float32)
    sums = np.zeros(dots.shape[1:], np.float32)
    for block, dot in enumerate(dots):
        sums = fma(dot.astype(np.float32), scales[:, block, None] * weight_scales[None, :, block], sums)
    return sums


def fma(a: Array, b: Array, c: Array) -> Array:
    """a * b + c of float32, rounded once: the product is exact in float64, the sum there rounded to odd."""
    product, addend = a.astype(np.float64) * b, c.astype(np.float64)
    total = product + addend
    part = total - product
    rest = (product - (total - part)) + (addend - part)
    as_bits = total.view(np.int64)
    even = (rest != 0) & (as_bits & 1 == 0)
    as_bits += np.where(even, np.where((rest > 0) == (total > 0), 1, -1), 0)
    return as_bits.view(np.float64).astype(np.float32)


def run(x: Array, *matrices: Matrix, threads: int = 1, gated: int = 0, last: int = 0) -> Array:
    """``x`` [batch, tokens, width] through one node."""
    weights = {f"w{i}": array for i, array in enumerate(array for m in matrices for array in m.stored())}
    attributes = {
        "rows": [len(m.scales) for m in matrices],
        "bits": [m.bits for m in matrices],
        "block_size": [m.block_size for m in matrices],
        "has_zeros": [int(m.zeros is not None) for m in matrices],
    }
    model = kernel_graphs.model(
        "QuantizedLinear", {"x": x}, {"y": np.float32}, weights,
        columns=matrices[0].columns, gated=gated, last=last, **attributes,
    )  # fmt: skip
    (y,) = kernel_graphs.session(model, threads).run(None, {"x": x})
    result: Array = y
    return result


def activations(rng: np.random.Generator, *shape: int) -> Array:
    """Tokens of different magnitude, with some blocks of nothing but 0."""
    x = rng.standard_normal(shape) * 10.0 ** rng.uniform(-3, 3, (*shape[:-1], 1))
    return (x * (rng.random((*shape[:-1], -(-shape[-1] // 16))).repeat(16, -1)[..., : shape[-1]] > 0.1)).astype(
        np.float32
    )


@each_instruction_set
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    bits=st.sampled_from([4, 8]),
    block_size=st.sampled_from([16, 32, 64, 128, 256]),
    has_zeros=st.booleans(),
    half_scales=st.booleans(),
    rows=st.integers(1, 70),
    columns=st.integers(1, 600),
    batch=st.integers(1, 2),
    tokens=st.integers(1, 40),
)
@example(seed=0, bits=4, block_size=16, has_zeros=True, half_scales=True, rows=33, columns=272, batch=1, tokens=1)
@example(seed=0, bits=4, block_size=32, has_zeros=True, half_scales=False, rows=33, columns=32 * 19, batch=1, tokens=1)
@example(seed=0, bits=8, block_size=16, has_zeros=True, half_scales=True, rows=33, columns=272, batch=1, tokens=1)
@example(seed=0, bits=8, block_size=256, has_zeros=False, half_scales=True, rows=16, columns=2560, batch=2, tokens=9)
# Chunks of 96 rows:
@example(seed=0, bits=4, block_size=32, has_zeros=True, half_scales=False, rows=9301, columns=80, batch=1, tokens=9)
@example(seed=0, bits=8, block_size=16, has_zeros=True, half_scales=False, rows=6205, columns=48, batch=1, tokens=1)
def test_the_definition(
    seed: int, bits: int, block_size: int, has_zeros: bool, half_scales: bool, rows: int, columns: int,
    batch: int, tokens: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    matrix = Matrix.random(rng, rows, columns, bits, block_size, has_zeros, half_scales)
    x = activations(rng, batch, tokens, columns)
    found = run(x, matrix)
    assert found.shape == (batch, tokens, rows)
    flat = x.reshape(-1, columns)
    expected, magnitude = in_float64(flat, matrix)
    assert (np.abs(found.reshape(-1, rows) - expected) <= TOLERANCE * magnitude).all()
    assert_same_bits(found, in_float32(flat, matrix).reshape(found.shape))


MIXED = [
    *((37, 4, 32, True), (16, 8, 128, False), (50, 4, 32, False, True), (9, 8, 16, True, True), (1, 4, 64, True)),
    *((20, 4, 32, True, True), (40, 8, 128, False, True)),
]


def mixed(rng: np.random.Generator, columns: int = 200) -> list[Matrix]:
    return [Matrix.random(rng, rows, columns, *rest) for rows, *rest in MIXED]  # type: ignore[arg-type]


@each_instruction_set
@pytest.mark.parametrize("tokens", [1, 3, 20])
def test_several_matrices_in_one_node(tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    matrices, x = mixed(rng), activations(rng, 2, tokens, 200)
    expected = np.concatenate([in_float32(x.reshape(-1, 200), m) for m in matrices], axis=1)
    assert_same_bits(run(x, *matrices), expected.reshape(2, tokens, -1))


@each_instruction_set
def test_every_float16_is_a_scale() -> None:
    """Subnormal ones included, which processors may take for 0."""
    scales = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    scales = scales[np.isfinite(scales)].reshape(-1, 2)
    rows, rng = len(scales), np.random.default_rng(0)
    matrix = Matrix(64, 8, 32, rng.integers(1, 127, (rows, 64), np.uint8), scales, None)
    x = activations(rng, 1, 1, 64)
    assert_same_bits(run(x, matrix)[0], in_float32(x[0], matrix))


@each_instruction_set
@pytest.mark.parametrize("columns", [200, 256])
def test_halves_are_rounded_to_even(columns: int) -> None:
    x = (np.arange(columns, dtype=np.float32) % 254 - 127) + np.float32(0.5)
    x[::16] = 127  # then scale and its inverse are 1
    matrix = Matrix.random(np.random.default_rng(0), 16, columns, 8, 16, True)
    assert_same_bits(run(x[None, None], matrix)[0], in_float32(x[None], matrix))


@each_instruction_set
def test_blocks_of_next_to_nothing() -> None:
    """Of 1e-37 the inverse is infinite; what silu leaves of -85 is as small."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (3, 9, 32)).astype(np.float32)
    x *= np.array([1e-45, 1e-40, 3e-37, 1e-36, 1.1e-36, 1e-35, 1e-30, 0, 1], np.float32)[:, None]
    matrix = Matrix.random(rng, 16, 9 * 32, 4, 32, True)
    found = run(x.reshape(1, 3, -1), matrix)[0]
    assert_same_bits(found, in_float32(x.reshape(3, -1), matrix))
    assert not run(x[:, :3].reshape(1, 3, -1), Matrix.random(rng, 16, 3 * 32, 8, 32, False)).any()


@each_instruction_set
@pytest.mark.parametrize("columns", [200, 256])
@pytest.mark.parametrize(("bits", "block_size"), [(4, 32), (8, 64)])
def test_gated(columns: int, bits: int, block_size: int) -> None:
    """Against silu in float64. An activation at the edge between two quanta may fall to either side."""
    rng = np.random.default_rng(columns)
    matrix = Matrix.random(rng, 40, columns, bits, block_size, True)
    gate, up = 4 * rng.standard_normal((2, 20, columns)).astype(np.float32)
    found = run(np.concatenate([gate, up], axis=1)[None], matrix, gated=1)[0]
    product = (gate / (1 + np.exp(-gate.astype(np.float64))) * up).astype(np.float32)
    expected, magnitude = in_float64(product, matrix)
    padded = np.pad(product, ((0, 0), (0, -columns % block_size))).reshape(len(product), -1, block_size)
    steps = padded / (np.abs(padded).max(2, keepdims=True) / np.float64(127))
    at_edge = np.abs(np.abs(steps - np.floor(steps)) - 0.5) < 127 * 1e-6
    assert at_edge.mean() < 1e-3
    one_step = at_edge * quantized(product, block_size)[1][:, :, None].astype(np.float64)
    weights = np.abs(matrix.centred() * matrix.scales[:, :, None]).reshape(40, -1)
    assert (np.abs(found - expected) <= 2e-6 * magnitude + one_step.reshape(20, -1) @ weights.T).all()


@each_instruction_set
def test_gates_that_are_far_from_zero() -> None:
    """silu of -1000 is -0, of 1000 is 1000; what exp makes of either is no NaN."""
    gate = np.tile(np.array([-1e30, -1000, -90, 0, 90, 1000, 1e30, -0.0], np.float32), 8)
    matrix = Matrix.random(np.random.default_rng(0), 16, 64, 8, 64, False)
    found = run(np.concatenate([gate, np.ones(64, np.float32)])[None, None], matrix, gated=1)[0]
    expected, magnitude = in_float64(np.maximum(gate, 0)[None], matrix)
    assert (np.abs(found - expected) <= 1e-5 * magnitude).all()


@each_instruction_set
def test_last() -> None:
    rng = np.random.default_rng(0)
    matrix, x = Matrix.random(rng, 40, 96, 4, 32, True), activations(rng, 3, 7, 96)
    assert_same_bits(run(x, matrix, last=1), run(x, matrix)[:, -1:])
    assert run(x[:, :0], matrix, last=1).shape == (3, 0, 40)


@each_instruction_set
@pytest.mark.parametrize("gated", [0, 1])
def test_a_token_is_the_same_alone_and_among_others(gated: int) -> None:
    rng = np.random.default_rng(0)
    matrices, x = mixed(rng), activations(rng, 2, 20, 200 * (1 + gated))
    together = run(x, *matrices, gated=gated)
    for count in range(1, 20):  # each number of rows that a tile may serve together, and what is left over
        assert_same_bits(run(x[:1, :count], *matrices, gated=gated), together[:1, :count])
        assert_same_bits(run(x[1:, count:], *matrices, gated=gated), together[1:, count:])


@pytest.mark.parametrize("tokens", [1, 20])
def test_threads_change_nothing(tokens: int) -> None:
    rng = np.random.default_rng(0)
    matrices = [Matrix.random(rng, rows, 200, 4, 32, True) for rows in (700, 300, 5)]
    x = activations(rng, 1, tokens, 200)
    one = run(x, *matrices)
    for threads in (2, 3, 5):
        assert_same_bits(run(x, *matrices, threads=threads), one)


def test_instruction_sets_change_nothing_of_a_gate(native_kernels: ctypes.CDLL) -> None:
    """The only numbers here without an emulation to the last bit."""
    rng = np.random.default_rng(0)
    matrix, x = Matrix.random(rng, 40, 600, 4, 32, True), activations(rng, 1, 30, 1200)
    before, found = native_kernels.helium_kernels_name(), []
    try:
        for name in kernel_graphs.INSTRUCTION_SETS:
            if native_kernels.helium_use_kernels(name.encode()):
                found.append(run(x, matrix, gated=1))
    finally:
        native_kernels.helium_use_kernels(before)
    if len(found) == 1:
        pytest.skip("this machine has the generic kernels alone")
    for other in found[1:]:
        assert_same_bits(other, found[0])


# What the tolerance tells apart


def test_a_wrong_order_or_zero_is_noticed() -> None:
    rng = np.random.default_rng(0)
    matrix, x = Matrix.random(rng, 40, 192, 4, 32, True), activations(rng, 1, 5, 192)
    assert matrix.zeros is not None
    found, (_, magnitude) = run(x, matrix)[0], in_float64(x[0], matrix)
    swapped = matrix.quanta.reshape(40, -1, 2)[:, :, ::-1].reshape(40, -1)
    for wrong in (
        dataclasses.replace(matrix, quanta=swapped),
        dataclasses.replace(matrix, zeros=matrix.zeros + 1),
        dataclasses.replace(matrix, zeros=None),
        dataclasses.replace(matrix, scales=np.roll(matrix.scales, 1, axis=1)),
    ):
        error = np.abs(found - in_float64(x[0], wrong)[0]) / np.maximum(magnitude, 1e-30)
        assert error.max() > 1e4 * TOLERANCE


# Memory and what is refused


def test_nothing_behind_the_weights_is_read() -> None:
    """In the bundle the last matrix ends the mapped file: a page behind it that none may read ends the process."""
    script = Path(__file__).with_name("guarded_weights.py")
    environment = {**os.environ, "PYTHONPATH": str(script.parents[1])}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["generic"]), done.stdout + done.stderr


@each_instruction_set
@pytest.mark.parametrize("gated", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_not_lost(value: float, gated: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 3, 256 * (1 + gated))).astype(np.float32)
    x[0, 1, 70] = value
    found = run(x, Matrix.random(rng, 40, 256, 4, 32, has_zeros=True), gated=gated)
    assert np.isnan(found[0, 1]).all()
    assert np.isfinite(found[0, [0, 2]]).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bits": [3]}, "bits are 4 or 8, block sizes powers of 2 from 16 to 256"),
        ({"rows": [0]}, "bits are 4 or 8"),
        ({"block_size": [48]}, "block sizes powers of 2"),
        ({"block_size": [8]}, "block sizes powers of 2"),
        ({"block_size": [512]}, "block sizes powers of 2"),
        ({"bits": [4, 4]}, "lists differ in length"),
        ({"columns": 63}, "x has another width"),
        ({"gated": 1}, "x has another width"),
        ({"columns": 65}, "weights have another type or size"),
        ({"rows": [15]}, "weights have another type or size"),
        ({"bits": [8]}, "weights have another type or size"),
        ({"block_size": [64]}, "weights have another type or size"),
        ({"quanta": np.zeros((16, 2, 16), np.int8)}, "weights have another type or size"),
        ({"scales": np.zeros((16, 2), np.float64)}, "weights have another type or size"),
        ({"zeros": np.zeros((15, 1), np.uint8)}, "weights have another type or size"),
        ({"has_zeros": [0]}, "another number of weights"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_what_is_refused(changes: dict[str, Any], said: str) -> None:
    matrix, x = Matrix.random(np.random.default_rng(0), 16, 64, 4, 32, True), np.ones((1, 1, 64), np.float32)
    changed: dict[str, Any] = {
        **dict(zip(("quanta", "scales", "zeros"), matrix.stored(), strict=True)),
        **{"columns": 64, "rows": [16], "bits": [4], "block_size": [32], "has_zeros": [1], "gated": 0, "last": 0},
        **changes,
    }
    weights = {name: changed.pop(name) for name in ("quanta", "scales", "zeros")}
    model = kernel_graphs.model("QuantizedLinear", {"x": x}, {"y": np.float32}, weights, **changed)
    with pytest.raises(Exception, match=f"QuantizedLinear: .*{said}"):
        kernel_graphs.session(model).run(None, {"x": x})
