"""Reading the whole input once before the model is loaded: is every row usable, and how many are there?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from helium_onnx.batching.rows import Input, Line, Row, RowForm, file_state, read_lines, read_row
from helium_onnx.batching.tasks import TokenCounter
from helium_onnx.batching.work import told
from helium_onnx.errors import ContextOverflowError, PromptError, TextError
from helium_onnx.progress import ProgressCallback, ProgressEvent

_EVENT_BYTES = 1 << 20


@dataclass(frozen=True)
class Survey:
    """The input's rows, lines up to the last row (of which blank ones are no rows), and SHA-256 of the rows.

    ``state`` is the file's, by which a later change is noticed.
    """

    rows: int
    lines: int
    sha256: str
    state: tuple[int, int]

    def identity(self) -> dict[str, Any]:
        """What a resumed job compares: a copy of the file will do."""
        return {"rows": self.rows, "lines": self.lines, "sha256": self.sha256}


def survey(source: Input, form: RowForm, counter: TokenCounter, *, reports: bool, progress: ProgressCallback) -> Survey:
    """Read every row, and hold each against the context.

    Raises:
        TextError: the file cannot be read, or has no row at all; unless ``reports``, a row cannot be used. The error
            names file and line.
    """
    digest = hashlib.sha256()
    last, told_bytes = Line(b"", -1, 0, 0), 0
    with source.open() as file:
        state = file_state(file)
        for last in read_lines(file, source):
            digest.update(b"%d:" % last.number)
            digest.update(last.data)
            if not reports:
                _check(read_row(last, form), source, form, counter)
            if last.start - told_bytes >= _EVENT_BYTES:
                told_bytes = last.start
                progress(ProgressEvent("check", source.name, last.start, max(state[0], last.start)))
    if last.row < 0:
        expected = "a text a line" if form.lines else f'one JSON object a line, as {{"{form.field}": "..."}}'
        raise TextError(f"{source.name} has no rows", found="nothing but blank lines", expected=expected)
    return Survey(last.row + 1, last.number, digest.hexdigest(), state)


def _check(row: Row, source: Input, form: RowForm, counter: TokenCounter) -> None:
    where = f"{source.name}, line {row.line}"
    report = "or let its output row say why: --bad-rows report"
    if row.flaw is not None:
        expected = "a text a line" if form.lines else f'one JSON object a line, as {{"{form.field}": "..."}}'
        raise TextError(f"{where} cannot be used", found=row.flaw, expected=expected, remedy=f"correct it, {report}")
    if counter.surely_fits(row.text):
        return
    try:
        counter(row.text)
    except (PromptError, ContextOverflowError) as error:
        remedy = f"{error.remedy}, {report}"
        raise TextError(f"{where} cannot be used", found=told(error), remedy=remedy) from None
