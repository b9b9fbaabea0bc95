"""Working through a window: which rows run together, and what each becomes. The same on every worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helium_onnx.batching.rows import Line, Row, RowForm, read_row
from helium_onnx.batching.tasks import Runner
from helium_onnx.batching.windows import Limits, batches
from helium_onnx.errors import BatchError, ContextOverflowError, GenerationError, PromptError


@dataclass(frozen=True)
class Work:
    """What a worker is told: plain data, which can be sent to another machine.

    ``path`` is the bundle's, whose digest must be ``digest``; ``load_options`` are keywords of ``helium_onnx.load``.
    ``reports``: a row that cannot be used becomes an output row that says why, not an error.
    """

    path: Path
    digest: str
    task: str
    options: dict[str, Any]
    form: RowForm
    limits: Limits
    load_options: dict[str, Any]
    context_length: int | None
    reports: bool


@dataclass(frozen=True)
class Done:
    """An output row and the place of its input row; ``bad`` where it holds an error."""

    row: int
    line: int
    data: bytes
    bad: bool = False


def work_through(
    lines: Sequence[Line],
    work: Work,
    count_tokens: Callable[[str], int],
    runner: Callable[[], Runner],
    is_wanted: Callable[[Line], bool] = lambda _line: True,
) -> Iterator[list[Done]]:
    """The output rows of a window, batch by batch, the longest texts first; bad rows before all.

    A batch of which no row is wanted does not run; one of which some are runs whole, so that its rows are what they
    were. Only wanted rows come out. ``runner`` is asked for when it is needed.

    Raises:
        BatchError: a row is bad, and ``work`` does not report such rows: the input is not what it was.
        And what the model raises.
    """
    usable: list[tuple[Line, Row, int]] = []
    bad: list[Done] = []
    for line in lines:
        row = read_row(line, work.form)
        flaw = row.flaw
        if flaw is None:
            try:
                usable.append((line, row, count_tokens(row.text)))
                continue
            except (PromptError, ContextOverflowError) as error:
                flaw = told(error)
        if not work.reports:
            raise BatchError("the input was changed while it was read", found=f"line {row.line}: {flaw}")
        if is_wanted(line):
            bad.append(Done(row.number, row.line, row.output({"error": flaw}), bad=True))
    if bad:
        yield bad
    for indices in batches([tokens for _, _, tokens in usable], work.limits):
        chosen = [usable[index] for index in indices]
        if not any(is_wanted(line) for line, _, _ in chosen):
            continue
        answers = runner().run([row for _, row, _ in chosen])
        yield [
            Done(row.number, row.line, _output(row, answer))
            for (line, row, _), answer in zip(chosen, answers, strict=True)
            if is_wanted(line)
        ]


def told(error: PromptError | ContextOverflowError) -> str:
    """An error about one text in one line."""
    parts = [error.what]
    if error.found is not None:
        parts.append(f"found {error.found}")
    if error.expected is not None:
        parts.append(f"expected {error.expected}")
    return ", ".join(parts)


def _output(row: Row, answer: dict[str, Any]) -> bytes:
    try:
        return row.output(answer)
    except ValueError as error:
        raise GenerationError(
            "The model gave no usable result",
            found=f"{error}, at input line {row.line}",
            expected="finite numbers",
            remedy="validate the bundle",
        ) from error
