"""Jobs over a model of five lines: it answers each text with its letters reversed, and counts a token a character."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from helium_onnx.batching.engine import run_job
from helium_onnx.batching.report import BatchReport
from helium_onnx.batching.rows import Input, Row, RowForm
from helium_onnx.batching.windows import Limits
from helium_onnx.batching.work import Work
from helium_onnx.errors import ContextOverflowError
from helium_onnx.progress import silent

CONTEXT = 100
LIMITS = Limits(window_rows=7, window_bytes=1000, batch_rows=3, batch_tokens=90)


class Reverser:
    """Records the batches that it ran; ``before`` is called with the number of each, from 0."""

    def __init__(self, before: Callable[[int], object] = lambda _: None) -> None:
        self.batches: list[list[int]] = []
        self.closed = False
        self._before = before

    def run(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        self._before(len(self.batches))
        self.batches.append([row.number for row in rows])
        # What a kernel's rounding may do: an answer depends on the other rows of its batch.
        return [{"answer": row.text[::-1], "beside": sorted(other.number for other in rows)} for row in rows]

    def close(self) -> None:
        self.closed = True

    @property
    def rows(self) -> list[int]:
        return sorted(number for batch in self.batches for number in batch)


class Characters:
    """In place of a TokenCounter."""

    context = CONTEXT

    def __call__(self, text: str) -> int:
        if len(text) > CONTEXT:
            raise ContextOverflowError("the text does not fit the context", found=len(text), expected=CONTEXT)
        return len(text)

    def surely_fits(self, text: str) -> bool:
        return len(text) < 10


def work(*, ordered: bool = True, reports: bool = False, **changes: Any) -> Work:
    reserved = {"answer", "beside", "error"} | (set() if ordered else {"line"})
    form = RowForm(reserved=frozenset(reserved), numbered=not ordered)
    settings: dict[str, Any] = {
        "path": Path("nowhere"),
        "digest": "d1",
        "task": "text-classification",
        "options": {"top_k": 1},
        "form": form,
        "limits": LIMITS,
        "load_options": {},
        "context_length": None,
        "reports": reports,
    }
    return Work(**{**settings, **changes})


def run(
    source: Path,
    output: Path,
    model: Reverser | None = None,
    *,
    ordered: bool = True,
    resume: bool = False,
    force: bool = False,
    workers: Any = None,
    progress: Any = silent,
    **changes: Any,
) -> BatchReport:
    chosen = model or Reverser()
    return run_job(
        Input(source, str(source)),
        output,
        work(ordered=ordered, **changes),
        Characters(),  # type: ignore[arg-type]
        ordered=ordered,
        resume=resume,
        force=force,
        workers=workers,
        progress=progress,
        runner=lambda _work: chosen,
    )


def write_rows(path: Path, count: int = 40, *, blank: bool = True) -> list[dict[str, Any]]:
    """Rows of quite different lengths; every fifth line is blank."""
    rows = [{"id": f"r{i}", "text": f"{i} é" + "x" * (i * 37 % 50), "n": i} for i in range(count)]
    with path.open("w", encoding="utf-8") as file:
        for index, row in enumerate(rows):
            if blank and index % 5 == 4:
                file.write("\n")
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return rows


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
