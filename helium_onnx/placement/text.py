"""What `placement` returned, as a user reads it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from helium_onnx.terminal import visible

if TYPE_CHECKING:
    from rich.console import Console


def render(info: dict[str, Any], console: Console) -> None:
    """Print it: whether the provider serves the bundle, how that is known, and what it leaves in each graph."""
    from rich.table import Table
    from rich.text import Text

    for line in lines(info):
        console.print(Text(visible(line)), soft_wrap=True)
    console.print()
    counts = Table("graph", title="nodes taken", title_justify="left", show_edge=False, pad_edge=False)
    for column in ("nodes", "taken", "share", "partitions"):
        counts.add_column(column, justify="right")
    for graph in info["graphs"].values():
        numbers = (graph["nodes"], graph["taken"], f"{graph['share']:.1%}", graph["partitions"])
        counts.add_row(Text(visible(graph["file"])), *map(str, numbers))
    console.print(counts)
    for graph in info["graphs"].values():
        if not graph["left"]:
            continue
        console.print()
        title = f"{graph['file']}: what {info['provider']} leaves"
        asked = info["method"] == "onnxruntime"  # a table does not know who takes it
        columns = ("operator", "nodes", "runs on", "why") if asked else ("operator", "nodes", "why")
        table = Table(title=Text(visible(title)), title_justify="left", show_edge=False, pad_edge=False)
        for column in columns:
            table.add_column(column, justify="right" if column == "nodes" else "left", overflow="fold")
        groups = Counter((left["operator"], left["provider"] or "nobody", left["reason"]) for left in graph["left"])
        for (operator, provider, reason), number in groups.most_common():
            cells = {"operator": operator, "nodes": number, "runs on": provider, "why": reason}
            table.add_row(*(Text(visible(str(cells[column]))) for column in columns))
        console.print(table)


def lines(info: dict[str, Any]) -> list[str]:
    """The sentences above the tables."""
    provider, name = info["provider"], info["execution_provider"]
    found = [f"{provider} ({name}), as {_method(info)}"]
    if info["problem"] is not None:
        recipes = " or ".join(info["use"])
        found.append(f"{info['problem']}; for {provider}, export the checkpoint with --recipe {recipes}")
    found += [
        f"{graph['file']} does not load: {graph['problem']}" for graph in info["graphs"].values() if graph["problem"]
    ]
    if info["note"] is not None:
        found.append(f"note: {info['note']}")
    found += [f"{graph} is left out: {reason}" for graph, reason in info["skipped"].items()]
    return found


def _method(info: dict[str, Any]) -> str:
    if info["method"] == "onnxruntime":
        return f"assigned by {info['source']}"
    remedy = "" if info["remedy"] is None else f"; to ask it: {info['remedy']}"
    return f"read in a table of operators: {info['source']}. ONNX Runtime was not asked: {info['not_asked']}{remedy}"
