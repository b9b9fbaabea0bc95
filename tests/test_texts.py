"""Texts and windows: what is cut how, and every file that is refused, by its line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from helium_onnx import texts
from helium_onnx.errors import TextError, UsageError
from helium_onnx.texts import Text, Window, read_texts, token_windows
from helium_onnx.tokenizer import Tokenizer


def write(folder: Path, *lines: object) -> Path:
    path = folder / "texts.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def test_lines_in_their_order(tmp_path: Path) -> None:
    path = write(tmp_path, {"text": "été", "lang": "fr", "page": 7}, {"text": ""}, {"text": "b", "lang": None})
    data = path.read_bytes().replace(b"\n", b"\r\n\n")
    path.write_bytes(b"\xef\xbb\xbf" + data.rstrip())
    assert read_texts(path) == (Text("été", "fr", 1), Text("", None, 3), Text("b", None, 5))
    assert read_texts(str(path)) == read_texts(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ["is empty"]),
        (b"\n \n\t\n", ["is empty"]),
        (b'{"text": "a"}\nplain text\n', ["line 2 is not JSON"]),
        (b'{"text": "a"}\n{"text": "b"', ["line 2 is not JSON"]),
        (b'["text"]\n', ["line 1 is no object", "['text']"]),
        (b'"text"\n', ["line 1 is no object"]),
        (b'{"content": "a", "id": 3}\n', ['line 1 has no "text"', "'content', 'id'"]),
        (b"{}\n", ['line 1 has no "text"']),
        (b'{"text": 3}\n', ['line 1 has no "text"', "3"]),
        (b'{"text": ["a"]}\n', ['line 1 has no "text"']),
        (b'{"text": null}\n', ['line 1 has no "text"', "None"]),
        (b'{"text": "a", "lang": 3}\n', ['"lang" is no string']),
        (b'{"text": "a"}\n{"text": "\xe9t\xe9"}\n', ["line 2 is not UTF-8", "0xE9 at column 11"]),
        (b'{"text": "a\\ud800b"}\n', ["line 1 holds half a character"]),
        (b"[" * 100_000 + b"\n", ["line 1 is not JSON"]),
        (b'{"text": ' + b"9" * 5000 + b"}\n", ["line 1 is not JSON"]),
        (bytes(range(128, 256)), ["line 1 is not UTF-8"]),
        (b"\0\0\0", ["line 1 is not JSON"]),
    ],
)  # fmt: skip
def test_what_is_refused(data: bytes, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_bytes(data)
    with pytest.raises(TextError) as caught:
        read_texts(path)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert len(str(caught.value)) < 600


def test_places_that_hold_no_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TextError, match="is a folder"):
        read_texts(tmp_path)
    with pytest.raises(TextError, match="there is no file"):
        read_texts(tmp_path / "absent.jsonl")
    with pytest.raises(TextError, match="cannot be read"):
        read_texts("a\0b")
    with pytest.raises(TextError, match="cannot be read"):
        read_texts(tmp_path / ("n" * 300))
    monkeypatch.setattr(texts, "MAX_BYTES", 100)
    with pytest.raises(TextError, match="too large"):
        read_texts("/dev/zero")


def test_one_window_a_page(tokenizer: Tokenizer) -> None:
    long, short = "The table has rows. " * 60, "Too short."
    pages = [Text(short, "en", 1), Text(long, "en", 2), Text("", None, 3), Text(long, "de", 4), Text(long, "fr", 5)]
    found = token_windows(pages, tokenizer, max_tokens=100, min_tokens=64, limit=2)
    assert [(window.lang, window.line) for window in found] == [("en", 2), ("de", 4)]
    assert all(window.ids == tuple(tokenizer.encode(long)[:100]) for window in found)
    assert found[0].ids[0] == 1
    assert len(token_windows(pages, tokenizer, max_tokens=100, limit=None)) == 3
    assert [w.line for w in token_windows(pages, tokenizer, min_tokens=2, limit=None)] == [1, 2, 4, 5]


def test_a_page_is_whole_where_it_is_shorter(tokenizer: Tokenizer) -> None:
    text = "The table has rows. " * 20
    (window,) = token_windows([Text(text)], tokenizer)
    assert window == Window(tuple(tokenizer.encode(text)))


def test_a_long_page_is_tokenized_as_far_as_it_is_needed(tokenizer: Tokenizer) -> None:
    text = "The table has rows and columns. " * 2000
    (window,) = token_windows([Text(text)], tokenizer, max_tokens=128)
    assert window.ids == tuple(tokenizer.encode(text)[:128])


def test_every_window_begins_with_bos_and_nothing_is_lost(tokenizer: Tokenizer) -> None:
    text = "The table has rows and columns. " * 50
    found = token_windows([Text(text)], tokenizer, max_tokens=100, min_tokens=2, limit=None, every_window=True)
    assert all(window.ids[0] == 1 and len(window.ids) <= 100 for window in found)
    assert [token for window in found for token in window.ids[1:]] == tokenizer.encode(text)[1:]
    assert len(token_windows([Text(text)], tokenizer, max_tokens=100, limit=2, every_window=True)) == 2


def test_nothing_long_enough(tokenizer: Tokenizer) -> None:
    with pytest.raises(TextError) as caught:
        token_windows([Text("Short."), Text("A little longer than that.")], tokenizer)
    longest = len(tokenizer.encode("A little longer than that."))
    assert f"at most {longest} tokens" in str(caught.value)
    assert "at least 64" in str(caught.value)


@pytest.mark.parametrize("text", ["今日はとても良い天気ですね。" * 20, "Съешь же ещё этих мягких булок. " * 20])
def test_a_script_that_the_tokenizer_lacks(text: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(TextError, match="does not know this text's script") as caught:
        token_windows([Text(text)], tokenizer)
    assert "%" in str(caught.value)


def test_some_foreign_words_are_no_obstacle(tokenizer: Tokenizer) -> None:
    text = "The Japanese word for table is 表, as in a document. " * 10
    assert len(token_windows([Text(text)], tokenizer)) == 1


def test_unknown_text_without_byte_fallback(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "tiny")
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    spec["model"]["byte_fallback"] = False
    tiny.write_json(folder / "tokenizer.json", spec)
    tokenizer = Tokenizer.from_folder(folder, vocab_size=320, bos_token_id=1, eos_token_ids=(2,))
    with pytest.raises(TextError, match="script"):
        token_windows([Text("天 地 " * 50)], tokenizer)


@pytest.mark.parametrize(
    "wrong", [{"max_tokens": 1}, {"min_tokens": 1}, {"min_tokens": 65, "max_tokens": 64}, {"limit": 0}]
)
def test_windows_that_cannot_be_cut(wrong: dict[str, int], tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="no window"):
        token_windows([Text("a")], tokenizer, **wrong)  # type: ignore[arg-type]


def test_no_framework_is_imported() -> None:
    heavy = "{'torch', 'transformers', 'onnx', 'onnxruntime'}"
    code = f"import sys, helium_onnx.texts; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
