"""How reports of parity look on a terminal: a row for each text, and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def print_table(
    console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str
) -> None:
    """The first column is text, which is cut to fit; the others are figures."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=title, title_justify="left", caption=caption, caption_justify="left", show_edge=False, pad_edge=False
    )
    table.add_column(columns[0], overflow="ellipsis", no_wrap=True, ratio=1)
    for column in columns[1:]:
        table.add_column(column, justify="right")
    for text, *figures in rows:
        table.add_row(Text(text), *figures)  # Text: brackets in a prompt are no markup
    console.print(table)


def print_verdict(
    console: Console, *, passed: bool, tolerance: float | None, values: str, equal: str, warning: str | None
) -> None:
    """``values`` are what was compared (``logits``), ``equal`` what has to be the same beside (``tokens``)."""
    from rich.text import Text

    if warning:
        console.print(Text(f"warning: {warning}", style="yellow"))
    bar = f"{values} are finite; quantized weights and half precision differ by design, how much is in the table"
    if tolerance is not None:
        bar = f"bar for this recipe: differences up to {tolerance:g} and equal {equal}"
    verdict = "passed" if passed else "FAILED"
    console.print(Text(f"{verdict} ({bar})", style="green" if passed else "bold red"))
