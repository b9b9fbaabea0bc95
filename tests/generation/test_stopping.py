"""Stop strings: what is shown never depends on where the text was cut."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helium_onnx.errors import UsageError
from helium_onnx.generation.stopping import StopStrings


def expected(text: str, stop: list[str]) -> tuple[str, str | None]:
    """The definition: the earliest match, then the longest."""
    found = [(text.find(string), -len(string), string) for string in stop if string in text]
    if not found:
        return text, None
    start, _, string = min(found)
    return text[:start], string


SHORT = st.text(alphabet="ab\n", min_size=1, max_size=5)


@settings(max_examples=1000, deadline=None)
@given(st.lists(SHORT, max_size=4), st.lists(st.text(alphabet="ab\n", max_size=6), max_size=8))
def test_any_split_gives_the_earliest_and_longest_match(stop: list[str], pieces: list[str]) -> None:
    stopping = StopStrings(stop)
    text, shown = "".join(pieces), ""
    for index, piece in enumerate(pieces):
        shown += stopping.push(piece)
        # What is shown is final, and what is withheld could still become part of a match.
        assert expected(text, stop)[0].startswith(shown)
        so_far = "".join(pieces[: index + 1])
        if stopping.match is None and not any(string in so_far for string in stop):
            held = so_far[len(shown) :]
            assert held == "" or any(string.startswith(held) for string in stop)
            assert not any(string.startswith(so_far[start:]) for string in stop for start in range(len(shown))), (
                "shown too early"
            )
    shown += stopping.finish()
    assert (shown, stopping.match) == expected(text, stop)


def test_a_match_that_nothing_can_change_is_reported_at_once() -> None:
    stopping = StopStrings(["\n\n", "User:"])
    assert [stopping.push(piece) for piece in ("Hi", "\n", "U", "se", "r:")] == ["Hi", "", "\n", "", ""]
    assert stopping.match == "User:"
    assert (stopping.push("never"), stopping.finish()) == ("", "")


def test_an_open_match_waits_for_the_longer_one_and_ends_with_the_text() -> None:
    longer, shorter, cut = (StopStrings(["\n", "\n\n"]) for _ in range(3))
    assert (longer.push("a\n"), longer.match) == ("a", None)
    assert (longer.push("\nb"), longer.match) == ("", "\n\n")
    assert (shorter.push("a\n"), shorter.push("b"), shorter.match) == ("a", "", "\n")
    assert (cut.push("a\n"), cut.finish(), cut.match) == ("a", "", "\n")


def test_an_earlier_match_that_fails_gives_way_to_the_one_inside_it() -> None:
    stopping = StopStrings(["abcd", "bc"])
    assert (stopping.push("xabc"), stopping.match) == ("x", None)
    assert (stopping.push("x"), stopping.match) == ("a", "bc")


def test_without_stop_strings_text_passes() -> None:
    stopping = StopStrings([])
    assert (stopping.push("abc"), stopping.finish(), stopping.match) == ("abc", "", None)


@pytest.mark.parametrize("stop", [[""], ["a", ""], [None], [3]])
def test_an_empty_stop_string_is_refused(stop: list[Any]) -> None:
    with pytest.raises(UsageError, match=r"stop string cannot be used"):
        StopStrings(stop)


def test_the_work_is_linear() -> None:
    # Naive search compares 2000 characters at each of 200 000 positions, for each of 20 strings.
    stopping = StopStrings(["a" * 2000 + chr(ord("b") + i) for i in range(20)])
    begun = time.perf_counter()
    shown = sum(len(stopping.push("a")) for _ in range(200_000))
    assert time.perf_counter() - begun < 5
    assert shown == 198_000
    assert len(stopping.finish()) == 2000
