"""What all methods keep to: the layout, finite results, no block worse than round-to-nearest's."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from matrices import BITS, METHODS, SHAPES, absolute_error, heavy_tailed, round_trip, settings, squared_error, weights

from helium_onnx.exporter.quantize import hqq, k_quant, round_to_nearest
from helium_onnx.exporter.quantize.packing import dequantize

pytestmark = [
    pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero points"]),
    pytest.mark.parametrize("bits", BITS),
]
all_methods = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__.rpartition(".")[2])

TINY = float(np.finfo(np.float32).tiny)
HOSTILE = {
    "zeros": np.zeros((2, 80), np.float32),
    "one outlier": np.eye(1, 80, 40, dtype=np.float32) * np.float32(1e30),
    "one small weight": np.eye(1, 80, 40, dtype=np.float32) * np.float32(1e-30),
    "both": np.eye(1, 80, 3, dtype=np.float32) * np.float32(1e30) + np.float32(1e-30),
    "negative outlier": weights(1, 80) - np.eye(1, 80, 33, dtype=np.float32) * np.float32(1e6),
    "constant": np.full((2, 80), 0.3, np.float32),
    "negative constant": np.full((2, 80), -0.3, np.float32),
    "subnormal": weights(2, 80) * np.float32(1e-42),
    "smallest normal": weights(2, 80) * np.float32(TINY),
    "near the smallest": weights(2, 80) * np.float32(40 * TINY),
    "large": weights(2, 80) * np.float32(1e37),
    "one column": weights(3, 1),
    "one row": weights(1, 256),
}
IMPORTANCE = ("none", "zeros", "one column", "huge range", "subnormal")


def hostile_importance(kind: str, columns: int) -> np.ndarray | None:
    values = {
        "zeros": np.zeros(columns),
        "one column": np.eye(1, columns)[0],
        "huge range": np.logspace(-38, 38, columns),
        "subnormal": np.full(columns, 1e-42),
    }
    return values[kind].astype(np.float32) if kind in values else None


@all_methods
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: tuple[int, int], method: ModuleType, bits: int, symmetric: bool) -> None:
    (count, columns), blocks = shape, -(-shape[1] // 32)
    rows = method.quantize_rows(weights(*shape), settings(bits, symmetric))
    assert (rows.data.dtype, rows.data.shape) == (np.uint8, (count, blocks, 32 * bits // 8))
    assert (rows.scales.dtype, rows.scales.shape) == (np.float32, (count, blocks))
    if symmetric:
        assert rows.zero_points is None
    else:
        assert rows.zero_points.dtype == np.uint8
        assert rows.zero_points.shape == (count, -(-blocks * bits // 8))
    assert dequantize(rows, settings(bits, symmetric), columns).shape == shape


@all_methods
def test_zeros_are_exact(method: ModuleType, bits: int, symmetric: bool) -> None:
    x = weights(8, 96)
    x[:, ::3] = 0
    x[2, 32:64] = 0  # a block of zeros
    x[3] = 0
    x[4] = np.abs(x[4]) + 1.0
    x[4, ::3] = 0
    how = settings(bits, symmetric)
    rows = method.quantize_rows(x, how)
    assert (dequantize(rows, how, 96)[x == 0] == 0).all()
    assert np.isfinite(rows.scales).all()
    assert (rows.scales != 0).all()  # a kernel may divide by it


@all_methods
def test_rows_are_independent_and_left_as_they_are(method: ModuleType, bits: int, symmetric: bool) -> None:
    x, how = weights(7, 96), settings(bits, symmetric)
    importance = np.linspace(0, 2, 96, dtype=np.float32)
    whole = method.quantize_rows(x, how, importance)
    np.testing.assert_array_equal(x, weights(7, 96))
    np.testing.assert_array_equal(importance, np.linspace(0, 2, 96, dtype=np.float32))
    for i in range(7):
        one = method.quantize_rows(x[i : i + 1], how, importance)
        assert (one.data[0] == whole.data[i]).all()
        assert (one.scales[0] == whole.scales[i]).all()


@all_methods
@pytest.mark.parametrize("importance", IMPORTANCE)
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_matrices(kind: str, importance: str, method: ModuleType, bits: int, symmetric: bool) -> None:
    x, how = HOSTILE[kind], settings(bits, symmetric)
    given_importance = hostile_importance(importance, x.shape[1])
    with np.errstate(all="raise", under="ignore"):
        rows = method.quantize_rows(x, how, given_importance)
        y = dequantize(rows, how, x.shape[1])
    assert np.isfinite(y).all()
    assert np.isfinite(1 / rows.scales).all()
    check_not_worse(method, x, y, bits, symmetric, given_importance)


@hypothesis_settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_block_is_worse_than_round_to_nearest(data: st.DataObject, bits: int, symmetric: bool) -> None:
    seed = data.draw(st.integers(0, 2**32 - 1))
    columns = data.draw(st.integers(1, 100))
    rng = np.random.default_rng(seed)
    x = rng.standard_t(data.draw(st.sampled_from([1, 3, 30])), (3, columns))
    x = (x * 10.0 ** data.draw(st.integers(-40, 30)) + data.draw(st.sampled_from([0.0, 0.5, -5.0]))).astype(np.float32)
    importance = None
    if data.draw(st.booleans()):
        importance = np.exp(rng.standard_normal(columns) * data.draw(st.sampled_from([0.5, 2, 12]))).astype(np.float32)
    how = settings(bits, symmetric, data.draw(st.sampled_from([16, 32, 64])))
    for method in (k_quant, hqq):
        y = round_trip(method.quantize_rows, x, how, importance)
        assert np.isfinite(y).all()
        check_not_worse(method, x, y, bits, symmetric, importance, how.block_size)


def check_not_worse(
    method: ModuleType,
    x: np.ndarray,
    y: np.ndarray,
    bits: int,
    symmetric: bool,
    importance: np.ndarray | None,
    block_size: int = 32,
) -> None:
    """In the method's own measure, and up to float32's rounding of the weights themselves."""
    nearest = round_trip(round_to_nearest.quantize_rows, x, settings(bits, symmetric, block_size))
    ours, theirs, floor = (
        absolute_error(x, other, block_size)
        if method is hqq
        else squared_error(x, other, block_size, None if method is round_to_nearest else importance)
        for other in (y, nearest, x * (1 + 1e-6))
    )
    assert (ours <= theirs * (1 + 1e-5) + floor).all()


@all_methods
def test_a_search_changes_something(method: ModuleType, bits: int, symmetric: bool) -> None:
    x, how = heavy_tailed(64, 64), settings(bits, symmetric)
    y, nearest = (round_trip(m.quantize_rows, x, how) for m in (method, round_to_nearest))
    measure = absolute_error if method is hqq else squared_error
    ratio = measure(x, y, 32).sum() / measure(x, nearest, 32).sum()
    assert ratio == 1 if method is round_to_nearest else ratio < 0.95
