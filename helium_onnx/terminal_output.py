"""Results on stdout: JSON, and tables that are drawn on a terminal and plain elsewhere."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from helium_onnx.terminal import is_terminal

if TYPE_CHECKING:
    from rich.console import Console


def print_json(value: object) -> None:
    """``value`` as indented JSON, which stdout's encoding can bear. A NaN is our own mistake: ValueError."""
    text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:  # a path that is no Unicode, or a terminal that is not
        text = json.dumps(value, indent=2, allow_nan=False)
    print(text)


def quoted(path: Path) -> str:
    """``path`` as one word of a shell's command."""
    import shlex

    return shlex.quote(str(path))


@contextmanager
def stdout_console() -> Iterator[Console]:
    """For tables on stdout: as wide as the terminal; elsewhere wide enough that nothing is folded, and not padded."""
    from rich.console import Console

    if is_terminal(sys.stdout):
        yield Console(highlight=False)
        return
    page = Console(file=io.StringIO(), highlight=False, width=240)
    yield page
    for line in page.file.getvalue().splitlines():  # type: ignore[attr-defined]
        print(line.rstrip())


def marks() -> tuple[str, str]:
    """For a check that passed and one that failed."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return ("✓", "✗") if encoding.lower().startswith("utf") else ("ok", "failed")
