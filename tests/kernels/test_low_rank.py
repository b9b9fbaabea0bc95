"""LowRankUpdate against its definition in float64, and the same bits however its tokens are split."""

from __future__ import annotations

import kernel_graphs
import numpy as np
import pytest
from kernel_graphs import Array, assert_same_bits

pytestmark = pytest.mark.usefixtures("native_kernels")

#: Of the largest magnitude: some roundings to float32 in sums of up to 1100 products (seen: 4e-7).
TOLERANCE = 2e-6
ROWS = [(48, 16, 16), (1030,), (33, 7)]
RANKS = [(4, 0, 19), (0,), (37,), (16, 16), (1, 3)]


def feed(
    tokens: int, columns: int, rows: tuple[int, ...], ranks: tuple[int, ...], gated: int, batch: int = 1
) -> dict[str, Array]:
    rng = np.random.default_rng(tokens + columns)
    operands = {
        "y": rng.standard_normal((batch, tokens, sum(rows))),
        "x": rng.standard_normal((batch, tokens, columns * (1 + gated))),
    }
    for i, (count, rank) in enumerate(zip(rows, ranks, strict=False)):
        operands[f"a{i}"] = rng.standard_normal((columns, rank))
        operands[f"b{i}"] = rng.standard_normal((rank, count))
    return {name: array.astype(np.float32) for name, array in operands.items()}


def definition(operands: dict[str, Array], gated: int) -> Array:
    x = operands["x"].astype(np.float64)
    if gated:
        gate, up = np.split(x, 2, axis=-1)
        x = gate / (1 + np.exp(-gate)) * up
    count = (len(operands) - 2) // 2
    products = [x @ operands[f"a{i}"].astype(np.float64) @ operands[f"b{i}"].astype(np.float64) for i in range(count)]
    return operands["y"] + np.concatenate(products, axis=-1)


def run(operands: dict[str, Array], rows: tuple[int, ...], gated: int, threads: int = 1, **changes: object) -> Array:
    columns = operands["a0"].shape[0]
    attributes = {"columns": columns, "rows": list(rows), "gated": gated, **changes}
    model = kernel_graphs.model("LowRankUpdate", operands, {"out": np.float32}, **attributes)
    (out,) = kernel_graphs.session(model, threads).run(None, operands)
    return out


def test_gates_of_any_size() -> None:
    """Far beyond where the exponential is largest or smallest; what is no number stays none."""
    operands = feed(1, 70, (32,), (4,), 1)
    operands["x"][0, 0, :10] = [-1000, -120, -88, -87, -1e-8, 0, 1e-8, 87, 120, 1000]
    expected = definition(operands, 1)
    assert np.abs(run(operands, (32,), 1) - expected).max() <= TOLERANCE * np.abs(expected).max()
    operands["x"][0, 0, 20] = np.nan
    assert np.isnan(run(operands, (32,), 1)).all()


@pytest.mark.parametrize("gated", [0, 1])
@pytest.mark.parametrize("columns", [23, 512, 1101])
@pytest.mark.parametrize(("rows", "ranks"), [(r, k) for r in ROWS for k in RANKS if len(r) == len(k)])
def test_it_is_the_definition(rows: tuple[int, ...], ranks: tuple[int, ...], columns: int, gated: int) -> None:
    operands = feed(5, columns, rows, ranks, gated, batch=2)
    expected = definition(operands, gated)
    assert np.abs(run(operands, rows, gated) - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("gated", [0, 1])
def test_ranks_of_0_leave_the_bits_alone(gated: int) -> None:
    operands = feed(3, 64, (32, 16), (0, 0), gated)
    assert_same_bits(run(operands, (32, 16), gated), operands["y"])


@pytest.mark.parametrize("gated", [0, 1])
def test_a_tokens_bits_depend_on_nothing_but_the_token(gated: int) -> None:
    rows = (1030, 33)
    together = feed(9, 1100, rows, (37, 6), gated)
    expected = run(together, rows, gated, threads=2)
    for start, stop in ((0, 1), (1, 4), (4, 9)):
        part = {n: np.ascontiguousarray(v[:, start:stop]) if n in "xy" else v for n, v in together.items()}
        assert_same_bits(run(part, rows, gated), np.ascontiguousarray(expected[:, start:stop]))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("a0", (63, 4)), ("a0", (64, 5)), ("b0", (4, 31)), ("b0", (4, 32, 1)), ("x", (1, 2, 64)), ("y", (1, 3, 31))],
)
def test_operands_that_do_not_fit_are_refused(name: str, shape: tuple[int, ...]) -> None:
    operands = feed(3, 64, (32,), (4,), 0)
    operands[name] = np.zeros(shape, np.float32)
    with pytest.raises(Exception, match=r"LowRankUpdate: .* not "):
        run(operands, (32,), 0, columns=64)


def test_a_pair_too_few_is_refused() -> None:
    with pytest.raises(Exception, match="takes two matrices"):
        run(feed(3, 64, (32,), (4,), 0), (32, 8), 0)
