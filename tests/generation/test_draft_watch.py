"""Copies that were not drafted, and what came of them."""

from __future__ import annotations

from helium_onnx.generation.draft_length import MOST_TOKENS, DraftLength
from helium_onnx.generation.draft_watch import DraftWatch
from helium_onnx.generation.prompt_lookup import MATCH_PRIORS


class Notes:
    def __init__(self) -> None:
        self.seen: list[tuple[int, int, bool]] = []

    def record_watched(self, kind: int, position: int, accepted: bool) -> None:
        self.seen.append((kind, position, accepted))


def test_a_copy_is_followed_until_it_is_wrong() -> None:
    notes, text = Notes(), [1, 2, 3, 4, 1]
    watch = DraftWatch(notes)
    assert not watch.compare(text)
    watch.follow(2, 1, text)  # the text says 2, 3, 4
    assert watch.compare([*text, 2])
    assert not watch.compare([*text, 2, 3, 9])  # several steps later
    assert not watch.compare([*text, 2, 3, 9, 1])
    assert notes.seen == [(2, 0, True), (2, 1, True), (2, 2, False)]


def test_the_latest_copy_is_followed_beside_one_that_came_true() -> None:
    notes, text = Notes(), [1, 2, 3, 4, 1]
    watch = DraftWatch(notes)
    watch.follow(2, 1, text)
    text.append(2)
    assert watch.compare(text)
    watch.follow(3, 0, text)  # says 1
    text.append(3)
    assert watch.compare(text)
    assert notes.seen == [(2, 0, True), (2, 1, True), (3, 0, False)]
    watch.forget()
    assert not watch.compare([*text, 4])
    assert len(notes.seen) == 3


def test_a_copy_is_no_longer_than_a_draft() -> None:
    notes, text = Notes(), [7, 7]
    watch = DraftWatch(notes)
    watch.follow(2, 1, text)
    assert not watch.compare(text + [7] * 40)
    assert notes.seen == [(2, position, True) for position in range(MOST_TOKENS)]


def test_what_was_watched_decides_whether_drafts_are_made() -> None:
    lengths = DraftLength(MATCH_PRIORS, makes_trials=False)
    for _ in range(3):
        lengths.record_plain(1.0)
    for _ in range(20):
        lengths.record_watched(2, 0, False)
    assert all(lengths.choose(2, 16) == 0 for _ in range(100))  # no trial, however often
    for position in [0, 1, 2, 3] * 20:
        lengths.record_watched(2, position, True)
    assert lengths.choose(2, 16) > 3
