"""The incremental index against a search through the whole text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helium_onnx.generation.prompt_lookup import PromptLookup

LENGTHS = (8, 5, 3, 2)


def searched(text: list[int], lengths: tuple[int, ...]) -> tuple[int, int]:
    """(length, position after it) of the last earlier occurrence of the longest n-gram at the end; (0, 0) for none."""
    for n in sorted(lengths, reverse=True):
        for end in range(len(text) - 1, n - 1, -1):
            if len(text) > n and text[end - n : end] == text[-n:]:
                return n, end
    return 0, 0


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=60),
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=40),
    st.sampled_from([LENGTHS, (2,), (4, 3), (12, 2)]),
)
def test_it_finds_what_a_search_finds(
    prompt: list[int], tokens: list[tuple[int, bool]], lengths: tuple[int, ...]
) -> None:
    lookup, text = PromptLookup(lengths, candidates=1000), list(prompt)
    for token, looks in [(-1, True), *tokens]:
        if token >= 0:
            text.append(token)
        if not looks:  # several tokens come at once
            continue
        length, end = searched(text, lengths)
        assert lookup.look(text) == length
        if length:
            endless = text[end:]
            while len(endless) < 16:
                endless += text[end:]
            for count in (1, 3, 16):
                assert lookup.propose(text, count) == endless[:count]


def test_of_many_occurrences_the_latest_are_looked_at() -> None:
    """What is found then is a match all the same, if not always the longest."""
    text = [9, 9, 9, 1, 2, 9, 8, 7, *[5, 1, 2, 6] * 3, 9, 9, 9, 1, 2]
    assert (PromptLookup().look(text), searched(text, LENGTHS)) == (5, (5, 5))
    lookup = PromptLookup(candidates=3)
    assert lookup.look(text) == 2
    assert lookup.propose(text, 2) == [6, 9]


def test_nothing_is_found_in_a_text_without_repetitions() -> None:
    lookup = PromptLookup()
    text = [1]
    for token in range(2, 50):
        assert lookup.look(text) == 0
        text.append(token)


@pytest.mark.parametrize("length", [1, 2, 3, 20])
def test_a_cycle_is_continued_as_long_as_asked(length: int) -> None:
    cycle = list(range(length))
    text = cycle * 20
    lookup = PromptLookup()
    assert lookup.look(text) == 8
    assert lookup.propose(text, 16) == (cycle * 16)[:16]


def test_work_does_not_grow_with_the_text() -> None:
    """A look after 100,000 tokens takes no longer than after 1,000, but for a factor that no search would keep to."""

    def seconds(text: list[int]) -> float:
        lookup = PromptLookup()
        lookup.look(text)
        begun = time.perf_counter()
        for token in range(200):
            text.append(token % 7)
            lookup.look(text)
        return time.perf_counter() - begun

    short = min(seconds(list(range(1_000))) for _ in range(5))
    long = min(seconds(list(range(100_000))) for _ in range(5))
    assert long < 20 * short
