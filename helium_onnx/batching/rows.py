"""The input of a job, row by row: JSON Lines, or plain lines. Nothing but the row at hand is in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from helium_onnx import strict_json
from helium_onnx.errors import TextError

#: A longer line is no row of text; so much of it is read before that is known.
MAX_LINE_BYTES = 16 << 20
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class RowForm:
    """How rows are read and written.

    ``lines``: each line is a text of its own; else it is a JSON object whose ``field`` is the text. ``reserved`` are
    the keys that an output row gets, which no input row may have. ``drop_text`` leaves the text out of output rows, and
    ``numbered`` puts the number of the input line into them.
    """

    lines: bool = False
    field: str = "text"
    reserved: frozenset[str] = frozenset({"error"})
    drop_text: bool = False
    numbered: bool = False


@dataclass(frozen=True)
class Row:
    """One row: its number from 0, its line from 1, its text, and how its output row begins.

    ``flaw`` says why the row cannot be used; ``text`` is empty then.
    """

    number: int
    line: int
    text: str
    head: bytes
    flaw: str | None = None

    @property
    def prefix(self) -> bytes:
        """What its output row begins with: all that the input row had."""
        return self.head + b", " if len(self.head) > 1 else self.head

    def output(self, result: dict[str, Any]) -> bytes:
        """The output row: all that the input row had, then ``result``; one line with its newline.

        Raises:
            ValueError: a NaN or an infinity in ``result``.
        """
        return self.prefix + json.dumps(result, ensure_ascii=False, allow_nan=False).encode("utf-8")[1:] + b"\n"


@dataclass(frozen=True)
class Input:
    """A file of rows; ``name`` is what errors call it."""

    path: Path
    name: str

    def open(self) -> IO[bytes]:
        """The file for reading.

        Raises:
            TextError: no such file, a folder, a pipe or another thing that cannot be read twice, or unreadable.
        """
        expected = "a file with a row a line"
        try:
            if self.path.exists() and not self.path.is_file():
                found = "a folder" if self.path.is_dir() else "no regular file: a pipe or a device"
                raise TextError(f"{self.name} cannot be read as a file", found=found, expected=expected)
            return self.path.open("rb")
        except FileNotFoundError:
            raise TextError(f"there is no file {self.name}", expected=expected, remedy="check the path") from None
        except (OSError, ValueError) as error:  # ValueError: a path with a NUL
            reason = error.strerror if isinstance(error, OSError) else error
            raise TextError(f"{self.name} cannot be read", found=reason, expected=expected) from error


@dataclass(frozen=True)
class Line:
    """A line that is a row: its bytes without a mark of the byte order, and its place. ``start`` is a byte's offset."""

    data: bytes
    row: int
    number: int
    start: int


def read_lines(file: IO[bytes], source: Input, *, start: int = 0, row: int = 0, number: int = 0) -> Iterator[Line]:
    """The lines that are rows (blank ones are none), from byte ``start`` on, where row ``row`` is behind ``number``
    lines.

    Raises:
        TextError: a line is too long to be a row.
    """
    file.seek(start)
    while data := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(data) > MAX_LINE_BYTES:
            raise TextError(
                f"{source.name}, line {number} is too long",
                found=f"more than {MAX_LINE_BYTES >> 20} MiB",
                expected="a row of text",
                remedy="cut it, or check that this is a file of lines",
            )
        begin, start = start, start + len(data)
        if begin == 0:
            data = data.removeprefix(_BOM)
        if data.strip():
            yield Line(data, row, number, begin)
            row += 1


def read_row(line: Line, form: RowForm) -> Row:
    """The row of a line. What cannot be used is a row with a flaw, never an exception."""
    try:
        text, fields = _parse(line.data, form)
        if form.drop_text:
            fields = {key: value for key, value in fields.items() if key != _text_key(form)}
        head = _head(line, fields, form)
    except _FlawError as error:
        return Row(line.row, line.number, "", _flawed_head(line, error.fields, form), error.args[0])
    return Row(line.row, line.number, text, head)


class _FlawError(Exception):
    """Why a line is no row, and the fields that can be carried over all the same."""

    def __init__(self, flaw: str, fields: dict[str, Any] | None = None) -> None:
        super().__init__(flaw)
        self.fields = fields or {}


def _parse(data: bytes, form: RowForm) -> tuple[str, dict[str, Any]]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _FlawError(f"not UTF-8: byte 0x{data[error.start]:02X} at column {error.start + 1}") from None
    if form.lines:
        text = text.removesuffix("\n").removesuffix("\r")
        return text, {_text_key(form): text}
    try:
        value, flaws = strict_json.parse(text)
    except ValueError as error:
        raise _FlawError(f"not JSON: {str(error)[:100]}") from None
    if not isinstance(value, dict):
        raise _FlawError(f"no JSON object, but {_shown(value)}")
    if flaws:
        raise _FlawError(f"no strict JSON: {flaws[0]}")
    if taken := sorted(form.reserved & value.keys()):
        kept = {key: item for key, item in value.items() if key not in form.reserved}
        raise _FlawError(f'the key "{taken[0]}" is one that the output row gets; rename it', kept)
    if form.field not in value:
        keys = ", ".join(json.dumps(key)[:40] for key in list(value)[:8]) or "none"
        raise _FlawError(f'no field "{form.field}"; its keys: {keys}', value)
    if not isinstance(value[form.field], str):
        raise _FlawError(f'"{form.field}" is no text, but {_shown(value[form.field])}', value)
    return value[form.field], value


def _head(line: Line, fields: dict[str, Any], form: RowForm) -> bytes:
    numbered = {"line": line.number, **fields} if form.numbered else fields
    try:
        return json.dumps(numbered, ensure_ascii=False).encode()[:-1]
    except UnicodeEncodeError:
        raise _FlawError("half a character (a lone surrogate)") from None
    except RecursionError:
        raise _FlawError("nested too deeply") from None


def _flawed_head(line: Line, fields: dict[str, Any], form: RowForm) -> bytes:
    try:
        return _head(line, fields, form)
    except _FlawError:
        return _head(line, {}, form)


def _text_key(form: RowForm) -> str:
    return "text" if form.lines else form.field


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else f"{text[:57]}..."


def file_state(file: IO[bytes]) -> tuple[int, int]:
    """Size and time of the last change: what shows that a file was written while it was read."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
