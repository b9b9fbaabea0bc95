"""Which rows run together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from helium_onnx.batching.rows import Line
from helium_onnx.batching.windows import Limits, batches, windows


def limits(**changes: int) -> Limits:
    return Limits(**{"window_rows": 5, "window_bytes": 100, "batch_rows": 4, "batch_tokens": 50, **changes})


@given(st.lists(st.integers(1, 150), max_size=30))
def test_windows_are_all_rows_in_order_within_both_bounds(sizes: list[int]) -> None:
    lines = [Line(b"x" * size, row, row + 1, 0) for row, size in enumerate(sizes)]
    found = list(windows(lines, limits()))
    assert [line for window in found for line in window] == lines
    for index, window in enumerate(found):
        used = sum(len(line.data) for line in window)
        assert len(window) <= 5 and (used <= 100 or len(window) == 1)
        if index + 1 < len(found):  # it is as large as it can be
            assert len(window) == 5 or used + len(found[index + 1][0].data) > 100


@given(st.lists(st.integers(1, 80), max_size=30), st.integers(1, 100))
def test_batches_hold_each_row_once_and_fit(tokens: list[int], most: int) -> None:
    found = batches(tokens, limits(batch_tokens=most))
    assert sorted(index for batch in found for index in batch) == list(range(len(tokens)))
    for batch in found:
        assert len(batch) == 1 or (len(batch) <= 4 and len(batch) * max(tokens[index] for index in batch) <= most)
    flat = [tokens[index] for batch in found for index in batch]
    assert flat == sorted(tokens, reverse=True)


def test_equal_rows_run_in_their_order() -> None:
    assert batches([3, 9, 3, 3, 9], limits(batch_rows=2)) == [[1, 4], [0, 2], [3]]
