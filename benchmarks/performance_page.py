"""Write every number and chart of docs/performance.md from benchmarks/results: no number there is typed by hand.

    python benchmarks/performance_page.py           # seconds; measures nothing
    python benchmarks/performance_page.py --check   # exit code 1 where the page is not what the results say

What stands between ``<!-- generated: NAME -->`` and ``<!-- end -->`` is written anew from peers.json (peers.py),
settings.json (settings.py) and operators.json (operators.py), and the charts into docs/charts. A part that has not been
measured is named with the command that measures it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peer_charts
import performance_tables
from common import ROOT, median
from contenders import CONTENDERS
from own_sessions import RESULTS
from peer_tables import agreement, quiet, ratios, speeds, table, tuned

PAGE = ROOT / "docs/performance.md"
CHARTS = "charts"  # beside the page
CHART_FILES = ("prefill.svg", "decode.svg", "load.svg", "memory.svg")
_SECTION = re.compile(r"(<!-- generated: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
Results = Mapping[str, Any]


def speed(results: Results) -> str:
    found = results["speed"]
    sizes = [str(size) for size in found["prompts"]]
    rounds = [round_ for group in found["groups"] for round_ in group]
    return "\n".join(
        [
            drawn(results, "prefill.svg", "decode.svg"),
            speeds(found["groups"], sizes),
            "\nOurs to each peer, the medians of the rounds' own ratios; above 1 ours is faster:",
            ratios(found["groups"], sizes, CONTENDERS),
            quiet(rounds) + ".",
            f"\n{peer_charts.conditions(results.get('speed_conditions', {}))}.",
        ]
    )


def starts(results: Results) -> str:
    """Load and memory."""
    head = ["", "start to ready", "to the first token of 128", "private memory, ready", "after 16 tokens",
            "with pages of files"]  # fmt: skip
    rows = [
        [
            name,
            f"{median(found['runs'], 'load_seconds'):.2f} s",
            f"{median(found['runs'], 'first_token_seconds'):.2f} s",
            f"{median(found['runs'], 'loaded_mb', 'private'):.0f} MB",
            f"{median(found['runs'], 'generated_mb', 'private'):.0f} MB",
            f"{median(found['runs'], 'generated_mb', 'resident'):.0f} MB",
        ]
        for name, found in results["once"].items()
    ]
    words = f"\n\n{peer_charts.conditions(results.get('once_conditions', {}))}."
    return drawn(results, "load.svg", "memory.svg") + "\n" + table(head, rows) + words


def conversions(results: Results) -> str:
    head = ["", "weights", "conversion", "peak memory", "files"]
    rows = []
    for name, made in results["prepare"].items():
        if "failed" in made:
            rows.append([name, "", f"failed: {made['failed'].splitlines()[0][:100]}", "", ""])
            continue
        converted = "seconds" in made
        taken = [f"{made['seconds']:.0f} s", f"{made['peak_resident_mb'] / 1e3:.1f} GB"] if converted else ["none", ""]
        rows.append([name, made.get("storage", ""), *taken, f"{made['bytes'] / 1e9:.2f} GB"])
    return table(head, rows)


def tuning(results: Results) -> str:
    return "\n".join(tuned(name, rounds) for name, rounds in results["tune"].items())


def drawn(results: Results, *files: str) -> str:
    return peer_charts.embedded([chart for chart in peer_charts.charts(results) if chart.file in files], CHARTS)


#: Of each section: the file of results, the part of it that it needs, what writes it, and what measures that.
SECTIONS: dict[str, tuple[str, str, Callable[[Results], str], str]] = {
    "peers-speed": ("peers", "speed", speed, "peers.py speed"),
    "peers-starts": ("peers", "once", starts, "peers.py once"),
    "peers-conversions": ("peers", "prepare", conversions, "peers.py prepare"),
    "peers-agreement": ("peers", "check", lambda r: agreement(r["check"]), "peers.py check"),
    "peers-tuning": ("peers", "tune", tuning, "peers.py tune"),
    "settings-threads": ("settings", "threads", lambda r: performance_tables.threads(r["threads"]), "settings.py"),
    "settings-chunks": ("settings", "chunks", lambda r: performance_tables.chunks(r["chunks"]), "settings.py"),
    "settings-batches": ("settings", "batches", lambda r: performance_tables.batches(r["batches"]), "settings.py"),
    "operators-decode": (
        "operators", "decode", lambda r: performance_tables.operators(r, "decode"), "operators.py",
    ),
    "operators-prefill": (
        "operators", "prefill", lambda r: performance_tables.operators(r, "prefill"), "operators.py",
    ),
}  # fmt: skip


def section(name: str, results: Mapping[str, Results]) -> str:
    """What stands in one section."""
    if name not in SECTIONS:
        raise SystemExit(f"{PAGE}: no section is called {name}; there are {', '.join(SECTIONS)}")
    file, part, make, command = SECTIONS[name]
    if not results[file].get(part):
        return f"Not measured yet: `python benchmarks/{command}`."
    text = make(results[file]).strip("\n")
    return re.sub(r"\n{3,}", "\n\n", text)


def refreshed(page: str, results: Mapping[str, Results]) -> str:
    """The page with all its sections written anew."""
    return _SECTION.sub(lambda found: f"{found[1]}\n{section(found[2], results)}\n\n{found[4]}", page)


def read(folder: Path) -> dict[str, Results]:
    """All files of results, empty where one is not there."""
    paths = {name: folder / f"{name}.json" for name in ("peers", "settings", "operators")}
    return {name: json.loads(path.read_text("utf-8")) if path.exists() else {} for name, path in paths.items()}


def written(page: Path, results: Mapping[str, Results]) -> dict[Path, str | None]:
    """Every file that this script writes, and its text; None for a chart of a part that is not there."""
    charts = {chart.file: peer_charts.draw(chart) for chart in peer_charts.charts(results["peers"])}
    files: dict[Path, str | None] = {page.parent / CHARTS / name: charts.get(name) for name in CHART_FILES}
    return {**files, page: refreshed(page.read_text(encoding="utf-8"), results)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: benchmarks/results")
    parser.add_argument("--page", type=Path, default=PAGE, help="default: docs/performance.md")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where something would change")
    args = parser.parse_args()
    changed = []
    for path, text in written(args.page, read(args.results)).items():
        if text == (path.read_text(encoding="utf-8") if path.exists() else None):
            continue
        changed.append(path)
        if args.check:
            continue
        if text is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for path in changed:
        print(f"{path}: {'is not what the results say' if args.check else 'written'}")
    if args.check and changed:
        sys.exit(1)


if __name__ == "__main__":
    main()
