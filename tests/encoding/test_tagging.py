"""TokenClassifier: spans of characters, and the five ways to put tokens together."""

from __future__ import annotations

from pathlib import Path

import fake_texts
import numpy as np
import pytest
from fake_texts import FakeTexts
from numpy.typing import NDArray

from helium_onnx.encoding.tagging import TokenClassifier
from helium_onnx.errors import ContextOverflowError, UsageError

LABELS = ("O", "B-KEY", "I-KEY", "MENU")


class Planned(FakeTexts):
    """Gives token ``i`` of a text (behind ``<s>``) the label and probability that ``plan`` says, else O."""

    def __init__(self, plan: dict[int, tuple[str, float]]) -> None:
        super().__init__(self.logits)
        self.plan = plan

    def logits(self, ids: NDArray[np.int64], _: NDArray[np.int64]) -> NDArray[np.float32]:
        found = np.full((*ids.shape, len(LABELS)), np.log(0.01), np.float32)
        found[..., 0] = np.log(0.97)
        for place, (label, score) in self.plan.items():
            if place + 1 >= ids.shape[1]:
                continue
            found[:, place + 1] = np.log((1 - score) / (len(LABELS) - 1))
            found[:, place + 1, LABELS.index(label)] = np.log(score)
        return found


def tagger(folder: Path, plan: dict[int, tuple[str, float]]) -> TokenClassifier:
    config = fake_texts.config("HeliumForTokenClassification", id2label=dict(enumerate(LABELS)))
    return TokenClassifier(Planned(plan), fake_texts.tokenizer(folder), config)


def pieces(model: TokenClassifier, text: str) -> list[str]:
    ids, offsets = model.tokenizer.encode_with_offsets(text)
    assert ids == model.tokenizer.encode(text)
    return [text[start:end] for start, end in offsets[1:]]


TEXT = "Once an upon a"
#: By tokens: "Once", "an", "upon", "a".


def test_tokens_alone(tmp_path: Path) -> None:
    model = tagger(tmp_path, {0: ("B-KEY", 0.9), 1: ("I-KEY", 0.7), 3: ("MENU", 0.8)})
    assert pieces(model, TEXT) == ["Once", "an", "upon", "a"]
    found = model.tag(TEXT, aggregation="none")
    assert [(one.label, one.text, one.start, one.end) for one in found] == [
        ("B-KEY", "Once", 0, 4), ("I-KEY", "an", 5, 7), ("MENU", "a", 13, 14),
    ]  # fmt: skip
    assert [one.score for one in found] == pytest.approx([0.9, 0.7, 0.8], abs=1e-5)


def test_neighbours_go_together(tmp_path: Path) -> None:
    model = tagger(tmp_path, {0: ("B-KEY", 0.9), 1: ("I-KEY", 0.7), 2: ("B-KEY", 0.6), 3: ("MENU", 0.8)})
    found = model.tag(TEXT)
    assert [(one.label, one.text) for one in found] == [("KEY", "Once an"), ("KEY", "upon"), ("MENU", "a")]
    assert [one.score for one in found] == pytest.approx([0.8, 0.6, 0.8], abs=1e-5)
    assert all(TEXT[one.start : one.end] == one.text for one in found)


def test_what_lies_outside_parts_them(tmp_path: Path) -> None:
    model = tagger(tmp_path, {0: ("MENU", 0.9), 2: ("MENU", 0.7)})
    assert [one.text for one in model.tag(TEXT)] == ["Once", "upon"]


def test_words(tmp_path: Path) -> None:
    """A word of several tokens has one label; which, is what the three ways differ in."""
    model = tagger(tmp_path, {})
    text = "table bcd"
    assert pieces(model, text) == ["table", "", "b", "c", "d"]  # a space alone belongs to no word
    plan = {1: ("MENU", 0.99), 2: ("MENU", 0.4), 3: ("B-KEY", 0.9), 4: ("I-KEY", 0.5)}
    labels = {}
    for aggregation in ("first", "average", "max"):
        (found,) = tagger(tmp_path, plan).tag(text, aggregation=aggregation)  # type: ignore[call-overload]
        assert (found.text, found.start, found.end) == ("bcd", 6, 9)
        labels[aggregation] = (found.label, round(found.score, 2))
    # Mean scores of B-KEY: (0.2 + 0.9 + 0.17) / 3; of I-KEY and MENU less.
    assert labels == {"first": ("MENU", 0.4), "max": ("KEY", 0.9), "average": ("KEY", 0.42)}
    simple = tagger(tmp_path, plan).tag(text)
    assert [(one.label, one.text) for one in simple] == [("MENU", "b"), ("KEY", "cd")]


@pytest.mark.parametrize("text", ["日本 é", "a\n\n  b ", " lead", "x</s>y <0x41>", "ñ🏳️‍🌈ß", "\t\tend\r\n"])
def test_offsets(tmp_path: Path, text: str) -> None:
    """In order, inside of the text, no space before; together they are all that is not space."""
    model = tagger(tmp_path, {})
    ids, offsets = model.tokenizer.encode_with_offsets(text)
    assert ids == model.tokenizer.encode(text)
    assert offsets[0] == (0, 0)
    covered: set[int] = set()
    for start, end in offsets:
        assert 0 <= start <= end <= len(text)
        assert not text[start:end].startswith(" ")
        covered |= set(range(start, end))
    assert {place for place, character in enumerate(text) if character != " "} <= covered
    starts = [start for start, end in offsets if start < end]
    assert starts == sorted(starts)


def test_several_texts(tmp_path: Path) -> None:
    model = tagger(tmp_path, {0: ("MENU", 0.9)})
    assert [[one.text for one in found] for found in model.tag(["Once upon", "the", "time of"])] == [
        ["Once"], ["the"], ["time"],
    ]  # fmt: skip


def test_a_text_beyond_the_context(tmp_path: Path) -> None:
    model = tagger(tmp_path, {0: ("MENU", 0.9), 1: ("MENU", 0.9), 2: ("MENU", 0.9)})
    model.session.context_length = 3  # type: ignore[misc]
    with pytest.raises(ContextOverflowError):
        model.tag(TEXT)
    assert [one.text for one in model.tag(TEXT, truncate=True)] == ["Once an"]


def test_no_such_way(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="aggregation"):
        tagger(tmp_path, {}).tag(TEXT, aggregation="middle")  # type: ignore[call-overload]
