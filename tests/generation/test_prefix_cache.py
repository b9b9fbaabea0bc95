"""The tree of prefixes against one that is written out plainly, and under interruptions at every line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fake_session import FakePast
from hypothesis import given, settings
from hypothesis import strategies as st

from helium_onnx.generation import prefix_cache
from helium_onnx.generation.prefix_cache import Layout, PrefixCache

BLOCK = 4
TOKEN_BYTES = 8  # of FakePast: one int64 a token


def past_of(ids: list[int]) -> FakePast:
    return FakePast([[list(ids), []]], np.array([len(ids)]))


def empty_past() -> FakePast:
    return past_of([])


def cache_of(blocks: int) -> PrefixCache:
    return PrefixCache(BLOCK, blocks * BLOCK * TOKEN_BYTES)


def restored(cache: PrefixCache, ids: list[int]) -> int:
    """Tokens that the cache gives for the prompt ``ids``; checks that they are the prompt's."""
    past = empty_past()
    count = cache.restore(ids, past)
    assert past.lengths.tolist() == [count]
    assert past.rows[0][0] == ids[:count]
    return count


def check_sound(cache: PrefixCache) -> None:
    """No block without its parent, all that is found is counted, and the bound holds."""
    found = 0
    waiting = [cache._root]
    while waiting:
        for ids, child in waiting.pop().children.items():
            assert child in cache._order
            assert child.token_ids == ids and child.tensors[0].ravel().tolist() == list(ids)
            waiting.append(child)
            found += 1
    assert found <= len(cache._order)
    assert found * BLOCK * TOKEN_BYTES <= cache.nbytes <= cache.max_bytes
    assert len(cache.entries()) == found


class PlainCache:
    """The same, as a dictionary from prefixes to when they were used last."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.used, self.now = capacity, {}, 0  # type: dict[tuple[int, ...], tuple[int, int]]

    def prefixes(self, ids: list[int]) -> list[tuple[int, ...]]:
        return [tuple(ids[: end + BLOCK]) for end in range(0, len(ids) - BLOCK + 1, BLOCK)]

    def touch(self, prefixes: list[tuple[int, ...]]) -> None:
        self.now += 1
        for prefix in prefixes:
            self.used[prefix] = (self.now, -len(prefix))

    def restore(self, ids: list[int]) -> int:
        known = [prefix for prefix in self.prefixes(ids[:-1]) if prefix in self.used]
        self.touch(known)
        return len(known) * BLOCK

    def keep(self, ids: list[int]) -> None:
        wanted = self.prefixes(ids)
        known = [prefix for prefix in wanted if prefix in self.used]
        self.touch(known)
        for prefix in wanted[len(known) : self.capacity]:
            while len(self.used) >= self.capacity:
                del self.used[min((when, key) for key, when in self.used.items() if key not in known)[1]]
            known.append(prefix)
            self.used[prefix] = (self.now, -len(prefix))
        self.touch(known)


prompts = st.lists(st.integers(0, 1), max_size=26)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 9), st.lists(st.tuples(st.booleans(), prompts), max_size=30))
def test_it_finds_and_forgets_what_a_plain_one_does(capacity: int, calls: list[tuple[bool, list[int]]]) -> None:
    cache, plain = cache_of(capacity), PlainCache(capacity)
    for keeps, ids in calls:
        if keeps:
            cache.keep(ids, past_of(ids))
            plain.keep(ids)
        else:
            assert restored(cache, ids) == plain.restore(ids)
        check_sound(cache)
        assert len(cache._order) == len(plain.used)


def test_a_prompt_always_leaves_a_token_to_compute() -> None:
    cache = cache_of(10)
    ids = list(range(12))
    cache.keep(ids, past_of(ids))
    assert [restored(cache, ids[:count]) for count in (1, 4, 5, 8, 9, 12)] == [0, 0, 4, 4, 8, 8]
    assert restored(cache, [*ids, 99]) == 12
    assert restored(cache, [0, 1, 2, 3, 5]) == 4
    assert restored(cache, [9, *ids]) == 0


def test_what_two_texts_share_is_stored_once() -> None:
    cache = cache_of(10)
    for tail in (50, 60, 70):
        ids = [*range(8), *range(tail, tail + 4)]
        cache.keep(ids, past_of(ids))
    assert cache.nbytes == (2 + 3) * BLOCK * TOKEN_BYTES


def test_a_text_longer_than_the_bound_keeps_its_beginning() -> None:
    cache = cache_of(3)
    cache.keep([7] * 8, past_of([7] * 8))
    ids = list(range(40))
    cache.keep(ids, past_of(ids))
    assert restored(cache, ids) == 12
    assert cache.nbytes == cache.max_bytes
    nothing = PrefixCache(BLOCK, BLOCK * TOKEN_BYTES - 1)
    nothing.keep(ids, past_of(ids))
    assert nothing.nbytes == 0


def test_the_bound_counts_every_tensor() -> None:
    class Past(FakePast):
        def read_slots(self, start: int, stop: int) -> list[Any]:
            return [np.zeros((3, stop - start, 5), np.float16), np.zeros((2, stop - start, 4), np.int8)]

    past = Past([[[1] * 8, []]], np.array([8]))
    layout = Layout.of(past)
    assert layout.tensors == (("float16", 3, 5), ("int8", 2, 4))
    assert layout.token_bytes == 2 * 15 + 8
    cache = PrefixCache(BLOCK, 10 * 38 * BLOCK + 37)
    assert cache.capacity(layout) == 10
    cache.keep([1] * 8, past)
    assert cache.nbytes == 2 * BLOCK * 38 == sum(t.nbytes for entry in cache.entries() for t in entry.tensors)


def test_blocks_of_any_border_and_of_prefill_chunks() -> None:
    anywhere, chunks = PrefixCache(1, 1 << 20), PrefixCache(512, 1 << 20)
    assert (anywhere.block_tokens, anywhere.takes_decoded) == (32, True)
    assert (chunks.block_tokens, chunks.takes_decoded) == (512, False)


# Entries


@settings(max_examples=100, deadline=None)
@given(st.lists(prompts, max_size=10), st.lists(prompts, max_size=5), st.integers(0, 12))
def test_entries_give_the_same_cache_again(texts: list[list[int]], others: list[list[int]], capacity: int) -> None:
    cache, again = cache_of(100), cache_of(capacity)
    for ids in texts:
        cache.keep(ids, past_of(ids))
    for ids in others:
        again.keep(ids, past_of(ids))
    entries = cache.entries()
    assert all(-1 <= entry.parent < number for number, entry in enumerate(entries))
    again.merge(entries, Layout.of(empty_past()))
    check_sound(again)
    if capacity >= len(entries):
        for ids in texts:
            assert restored(again, [*ids, 9]) >= len(ids) // BLOCK * BLOCK
    if not others and capacity >= len(entries):
        assert [entry.token_ids for entry in again.entries()] == [entry.token_ids for entry in entries]


def test_where_there_is_too_little_room_the_latest_entries_are_taken() -> None:
    cache, small = cache_of(10), cache_of(2)
    for start in (10, 20, 30):
        ids = list(range(start, start + 4))
        cache.keep(ids, past_of(ids))
    small.keep([1] * 4, past_of([1] * 4))
    small.merge(cache.entries(), Layout.of(empty_past()))
    assert [restored(small, [*range(start, start + 4), 0]) for start in (10, 20, 30)] == [0, 4, 4]
    assert restored(small, [1] * 5) == 0


# Interruptions


def interrupted_at(line: int, call: Any) -> bool:
    """Run ``call``, with a KeyboardInterrupt before the ``line``-th line of prefix_cache.py; whether it came there."""
    count = 0

    def trace(frame: Any, event: str, _: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename != prefix_cache.__file__:
            return None
        if event == "line":
            if count == line:
                raise KeyboardInterrupt
            count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def calls_of(cache: PrefixCache) -> Iterator[Any]:
    full = list(range(16))
    yield lambda: cache.keep(full[:8] + [50] * 12, past_of(full[:8] + [50] * 12))
    yield lambda: cache.restore([*full, 1], empty_past())
    other = cache_of(9)
    other.keep([60] * 20, past_of([60] * 20))
    entries = other.entries()
    yield lambda: cache.merge(entries, Layout.of(empty_past()))


@pytest.mark.parametrize("which", range(3))
def test_an_interruption_at_any_line_leaves_it_sound(which: int) -> None:
    line = 0
    while True:
        cache = cache_of(6)
        for ids in (list(range(16)), [30] * 8):
            cache.keep(ids, past_of(ids))
        came = interrupted_at(line, list(calls_of(cache))[which])
        check_sound(cache)
        for ids in ([70] * 24, [*range(8), *[80] * 16], [30] * 12):  # and it works on
            cache.keep(ids, past_of(ids))
            check_sound(cache)
        assert restored(cache, [30] * 12) == 8
        if not came:
            break
        line += 1
    assert line > 30
