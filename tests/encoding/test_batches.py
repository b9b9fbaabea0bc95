"""Batches: every text once, like with like, within the bound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helium_onnx.encoding.batches import by_length, padded
from helium_onnx.errors import UsageError


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 1000), st.none() | st.integers(1, 5))
def test_each_once_and_within_the_bound(lengths: list[int], batch_tokens: int, rows: int | None) -> None:
    batches = list(by_length(lengths, batch_tokens, rows))
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[place] for place in batch)
        assert len(batch) == 1 or len(batch) * longest <= batch_tokens
        assert rows is None or len(batch) <= rows
    order = [lengths[place] for batch in batches for place in batch]
    assert order == sorted(lengths, reverse=True)


def test_no_batch_is_cut_without_need() -> None:
    assert [len(batch) for batch in by_length([10] * 7, 30)] == [3, 3, 1]


def test_a_batch_of_no_tokens_is_refused() -> None:
    with pytest.raises(UsageError, match="batch_tokens"):
        list(by_length([1], 0))


def test_padding_is_on_the_right() -> None:
    ids, mask = padded([[5, 6, 7], [8]], 3)
    np.testing.assert_array_equal(ids, [[5, 6, 7], [8, 3, 3]])
    np.testing.assert_array_equal(mask, [[1, 1, 1], [1, 0, 0]])
