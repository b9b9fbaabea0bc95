"""Rows of the input: what is one, what is carried over, and what is wrong with those that are none."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from helium_onnx.batching import rows
from helium_onnx.batching.rows import Input, Line, Row, RowForm, read_lines, read_row
from helium_onnx.errors import TextError

FORM = RowForm(reserved=frozenset({"error", "labels"}))


def one(data: bytes | str, form: RowForm = FORM, *, number: int = 3) -> Row:
    return read_row(Line(data if isinstance(data, bytes) else data.encode(), 2, number, 0), form)


def lines(data: bytes) -> list[Line]:
    return list(read_lines(io.BytesIO(data), Input(Path("in.jsonl"), "in.jsonl")))


def test_an_output_row_is_the_input_row_and_the_result() -> None:
    row = one('{"id": 1.50, "text": "été\\u2028", "tags": ["a", {"b": null}], "Ω": true}\n')
    assert row.flaw is None
    assert row.text == "été\u2028"
    output = row.output({"labels": [{"label": "fr", "score": 0.5}]})
    assert output.startswith(row.prefix)
    assert output.count(b"\n") == 1 and output.endswith(b"}\n")
    expected = {"id": 1.5, "text": "été\u2028", "tags": ["a", {"b": None}], "Ω": True}
    assert json.loads(output) == {**expected, "labels": [{"label": "fr", "score": 0.5}]}


def test_the_prefix_of_a_row_is_not_that_of_another_one() -> None:
    assert not one('{"text": "", "n": 12}').output({"a": 1}).startswith(one('{"text": "", "n": 1}').prefix)


def test_another_field_no_text_and_a_number() -> None:
    form = RowForm(field="body", drop_text=True, numbered=True)
    row = one('{"body": "x", "text": "another"}', form, number=17)
    assert row.text == "x"
    assert row.output({"e": []}) == b'{"line": 17, "text": "another", "e": []}\n'
    assert one('{"body": "x"}', RowForm(field="body", drop_text=True)).output({"e": 1}) == b'{"e": 1}\n'


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_plain_lines(end: str) -> None:
    row = one(f' {{"no": json}} {end}', RowForm(lines=True))
    assert row.text == ' {"no": json} '
    assert json.loads(row.output({"e": 1})) == {"text": row.text, "e": 1}


@pytest.mark.parametrize(
    ("data", "flaw"),
    [
        ("{", "not JSON"),
        ("nonsense", "not JSON"),
        (b'{"text": "\xff"}', "not UTF-8: byte 0xFF at column 11"),
        ("[1]", "no JSON object, but [1]"),
        ('"' + "x" * 99 + '"', "..."),
        ("null", "null"),
        ("[" * 100_000, "nested too deeply"),
        ('{"text": "a", "x": ' + "[" * 3000 + "]" * 3000 + "}", "nested too deeply"),
        ('{"text": "a", "n": NaN}', "NaN"),
        ('{"text": "a", "n": 1e999}', "1e999"),
        ('{"text": "a", "text": "b"}', "given twice"),
        ("{}", 'no field "text"; its keys: none'),
        ('{"id": 1, "body": 2}', 'no field "text"; its keys: "id", "body"'),
        ('{"text": 5}', '"text" is no text, but 5'),
        ('{"text": null}', '"text" is no text, but null'),
        ('{"text": "\\ud800"}', "half a character"),
        ('{"text": "a", "k": "\\udfff"}', "half a character"),
        ('{"text": "a", "labels": []}', 'the key "labels" is one that the output row gets'),
    ],
)
def test_flaws(data: bytes | str, flaw: str) -> None:
    row = one(data)
    assert row.flaw is not None and flaw in row.flaw and len(row.flaw) < 250
    assert row.text == ""
    output = json.loads(row.output({"error": row.flaw}))
    assert output["error"] == row.flaw


def test_a_flawed_row_keeps_what_it_can() -> None:
    assert json.loads(one('{"id": 7, "text": 5}').output({"error": "e"})) == {"id": 7, "text": 5, "error": "e"}
    assert json.loads(one('{"id": 7, "text": "", "error": 1}').output({"error": "e"})) == {
        "id": 7,
        "text": "",
        "error": "e",
    }


def test_lines_that_are_rows() -> None:
    found = lines(b'\xef\xbb\xbf{"a":1}\n\n  \r\n{"b":2}\r\n{"c":3}')
    assert [(line.row, line.number, line.data) for line in found] == [
        (0, 1, b'{"a":1}\n'),
        (1, 4, b'{"b":2}\r\n'),
        (2, 5, b'{"c":3}'),
    ]
    assert lines(b"") == lines(b"\n\n") == []


def test_reading_can_begin_anywhere() -> None:
    data = b"one\n\ntwo\nthree\n"
    whole = lines(data)
    rest = list(
        read_lines(io.BytesIO(data), Input(Path("x"), "x"), start=whole[1].start, row=1, number=whole[1].number - 1)
    )
    assert rest == whole[1:]


def test_a_line_without_end_is_refused_before_it_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 10)
    with pytest.raises(TextError, match=r"in\.jsonl, line 2 is too long"):
        lines(b"0123456789\n"[1:] + b"x" * 11)


@pytest.mark.parametrize(("make", "words"), [("nothing", "there is no file"), ("folder", "a folder"), ("nul", "null")])
def test_what_is_no_file(make: str, words: str, tmp_path: Path) -> None:
    path = {"nothing": tmp_path / "missing", "folder": tmp_path, "nul": Path("a\0b")}[make]
    with pytest.raises(TextError, match=words):
        Input(path, str(path)).open()
