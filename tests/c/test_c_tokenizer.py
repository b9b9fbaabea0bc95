"""The C library's tokenizer beside the `tokenizers` library, through Python's."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from c_library import Library, Model

from helium_onnx.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
NO_BOS, PARSE_SPECIAL = 1, 2
#: Names that a user's text does not mean as tokens, which the `tokenizers` library alone would take for such.
NAMES = ("<s>", "</s>", "<unk>", "<pad>", "<0x")


@pytest.fixture(scope="module")
def model(library: Library) -> Iterator[Model]:
    opened = library.open(Path(os.environ["HELIUM_BUNDLE"]))
    yield opened
    opened.close()


def pages() -> list[str]:
    files = [ROOT / "benchmarks/data/valid.jsonl", ROOT / "export/calibration.jsonl"]
    return [json.loads(line)["text"] for file in files for line in file.open(encoding="utf-8")]


def test_pages_of_text(model: Model, tokenizer: Tokenizer) -> None:
    """Encoded alike, and decoded to the text that Python decodes."""
    texts = pages()
    assert len(texts) > 500
    for text in texts:
        ids = model.encode(text)
        assert ids == tokenizer.encode(text)
        assert model.decode(ids) == tokenizer.decode(ids)


def test_random_bytes(model: Model, tokenizer: Tokenizer) -> None:
    """A hundred thousand strings of bytes, read as UTF-8 as far as they are."""
    draw = random.Random(8)
    for _ in range(100_000):
        text = draw.randbytes(draw.randrange(1, 24)).decode("utf-8", "replace" if draw.random() < 0.7 else "ignore")
        if text:
            assert model.encode(text) == tokenizer.encode(text), text


def test_random_pieces_of_pages(model: Model, tokenizer: Tokenizer) -> None:
    """Cut anywhere, with spaces, line ends and names of control tokens in between."""
    draw = random.Random(9)
    whole = "".join(pages()[:200])
    for _ in range(5000):
        parts = []
        for _ in range(draw.randrange(1, 4)):
            start = draw.randrange(len(whole))
            parts += [
                whole[start : start + draw.randrange(30)],
                draw.choice(["", " ", "  ", "\n", "\n\n", *NAMES, "</s>a"]),
            ]
        text = "".join(parts) or " "
        assert model.encode(text) == tokenizer.encode(text), text
        assert model.encode(text, PARSE_SPECIAL) == tokenizer.encode(text, parse_special=True), text


def test_every_character(model: Model, tokenizer: Tokenizer) -> None:
    """Each alone, and beside a control token, which is text where it touches a word."""
    for first in range(0, 0x110000, 256):
        characters = [chr(code) for code in range(first, first + 256) if not 0xD800 <= code < 0xE000]
        if not characters:
            continue
        text = "\n".join(characters)
        assert model.encode(text, NO_BOS) == tokenizer.encode(text, add_bos=False), hex(first)
        if first < 0x3400 or 0xA000 <= first < 0xB000 or 0xF900 <= first < 0x20000 or 0xE0000 <= first < 0xE0200:
            beside = "".join(f"{character}</s>{character} " for character in characters)
            assert model.encode(beside, PARSE_SPECIAL) == tokenizer.encode(beside, parse_special=True), hex(first)


def test_a_long_text_without_a_break(model: Model, tokenizer: Tokenizer) -> None:
    for text in ("a" * 200_000, "ab" * 100_000, "é" * 50_000, " " * 50_000, "\U0001f44d" * 20_000):
        assert model.encode(text) == tokenizer.encode(text)
