"""The charts of peers.py, from its results: one bar a contender, as SVG files that read on light and dark pages."""

from __future__ import annotations

import re
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from peer_tables import DECODE, PREFILL

from helium_onnx.pages import drawing

Results = Mapping[str, Any]
OURS = "helium-onnx"  # how the names of our own contenders begin

_INK, _FAINT, _GRID, _PAPER, _OWN, _PEER = "#1b1b1b", "#555555", "#e3e3e3", "#ffffff", drawing.COLOURS[0], "#9aa0a6"
#: What stands for each colour where the reader's system is dark. Without such a wish, and in programs that do not know
#: of it, the chart is on white paper.
_DARK = {_INK: "#e6edf3", _FAINT: "#a9b1ba", _GRID: "#30363d", _PAPER: "#0d1117", _OWN: drawing.COLOURS[5]}
_WIDTH, _BAR, _AROUND = 6.8, 0.33, 1.25  # inches: the chart, each bar, and what is above and below
_WRAP = 116  # letters of the conditions in a line


@dataclass(frozen=True)
class Bar:
    """``ends``, the least and the most of single rounds, are a whisker; ``further`` is a second part, behind the first.

    The number at the bar's end is that of the first part, or of both, as ``words`` say.
    """

    name: str
    value: float
    words: str
    ends: tuple[float, float] | None = None
    further: float = 0.0


@dataclass(frozen=True)
class Chart:
    """``parts`` name the two parts of a bar, where there are two."""

    file: str
    title: str
    unit: str
    conditions: str
    bars: tuple[Bar, ...]
    parts: tuple[str, str] | None = None


def charts(results: Results) -> list[Chart]:
    """Those whose part is in the results."""
    found = []
    if "speed" in results:
        found += speed_charts(results["speed"], results.get("speed_conditions", {}))
    if results.get("once"):
        found += start_charts(results["once"], results.get("once_conditions", {}))
    return found


def speed_charts(speed: Results, given: Results) -> list[Chart]:
    """Prefill of the longest prompt, and decode after it."""
    size = max(speed["prompts"])
    runs: dict[str, list[Results]] = {}
    for group in speed["groups"]:
        for round_ in group:
            for name, by_size in round_.items():
                runs.setdefault(name, []).append(by_size[str(size)])
    rounds = min(len(group) for group in speed["groups"])
    how = (
        f"{conditions(given)}. Medians of {rounds} rounds or more, in which runtimes take turns; lines: the least and "
        f"the most. Prompt of {size} tokens, {speed['new']} tokens after it, greedy, one row."
    )

    def bars(key: str, digits: int, *, reverse: bool) -> tuple[Bar, ...]:
        made = []
        for name, figures in runs.items():
            values = [float(f[key]) for f in figures]
            middle = statistics.median(values)
            made.append(Bar(name, middle, f"{middle:.{digits}f}", (min(values), max(values))))
        return tuple(sorted(made, key=lambda bar: bar.value, reverse=reverse))

    return [
        Chart("prefill.svg", f"Prefill of {size} tokens: tokens a second, more is better", "tokens/s", how,
              bars(PREFILL, 0, reverse=True)),
        Chart("decode.svg", f"Decode after {size} tokens: milliseconds a token, less is better", "ms a token", how,
              bars(DECODE, 1, reverse=False)),
    ]  # fmt: skip


def start_charts(once: Results, given: Results) -> list[Chart]:
    """A fresh process: time to the first token, and memory after some tokens."""
    times, memory = [], []
    for name, found in once.items():
        runs = found["runs"]
        ready = statistics.median(run["load_seconds"] for run in runs)
        first = statistics.median(run["first_token_seconds"] for run in runs)
        private = statistics.median(run["generated_mb"]["private"] for run in runs) / 1e3
        resident = statistics.median(run["generated_mb"]["resident"] for run in runs) / 1e3
        times.append(Bar(name, ready, f"{ready:.2f} + {first - ready:.2f}", further=max(0.0, first - ready)))
        files = max(0.0, resident - private)
        memory.append(Bar(name, private, f"{private:.2f} + {files:.2f}", further=files))
    how = f"{conditions(given)}. Medians of {min(len(found['runs']) for found in once.values())} processes"
    return [
        Chart("load.svg", "A fresh process to its first token: seconds, less is better", "seconds",
              f"{how}, the model's files in the page cache; a prompt of 128 tokens.",
              tuple(sorted(times, key=lambda bar: bar.value + bar.further)), ("until ready", "and to the first token")),
        Chart("memory.svg", "Memory of a process: GB, less is better", "GB",
              f"{how}, after a prompt of 128 tokens and 16 more. Pages of files are shared by all processes that have "
              "the same model, and the system may take them back.",
              tuple(sorted(memory, key=lambda bar: bar.value)), ("its own", "and pages of files")),
    ]  # fmt: skip


def conditions(given: Results) -> str:
    """The machine, in a few words."""
    if not given:
        return "Conditions were not recorded"
    return f"{given['cpu']}, {given['cores']} cores, {given['threads']} threads, {given['date']}"


def draw(chart: Chart) -> str:
    """The chart as the text of an SVG file."""
    figure, axes = drawing.new_axes()
    figure.set_size_inches(_WIDTH, _AROUND + _BAR * len(chart.bars) + (0.2 if chart.parts else 0))
    figure.set_facecolor(_PAPER)
    axes.set_facecolor(_PAPER)
    places = range(len(chart.bars))
    values = [bar.value for bar in chart.bars]
    colours = [_OWN if bar.name.startswith(OURS) else _PEER for bar in chart.bars]
    axes.barh(places, values, 0.66, color=colours)
    ends = list(values)
    if chart.parts:
        further = [bar.further for bar in chart.bars]
        axes.barh(places, further, 0.66, left=values, color=colours, alpha=0.42)
        ends = [value + more for value, more in zip(values, further, strict=True)]
    for place, bar in enumerate(chart.bars):
        if bar.ends is not None and bar.ends[1] > bar.ends[0]:
            axes.plot(bar.ends, [place, place], color=_INK, linewidth=1.0, marker="|", markersize=5)
            ends[place] = max(ends[place], bar.ends[1])
    reach = max(ends, default=1.0) or 1.0
    for place, (bar, end) in enumerate(zip(chart.bars, ends, strict=True)):
        axes.text(end + 0.012 * reach, place, bar.words, va="center", ha="left", fontsize=8.5, color=_INK)
    axes.set_xlim(0, reach * (1.2 if chart.parts else 1.12))
    axes.set_yticks(places, [drawing.label_text(bar.name) for bar in chart.bars])
    axes.invert_yaxis()
    axes.tick_params(colors=_INK, labelsize=8.5, length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(chart.unit, fontsize=8.5, color=_FAINT)
    axes.spines["left"].set_color(_FAINT)
    axes.spines["bottom"].set_visible(False)
    title = chart.title
    if chart.parts:
        title += f"\n(full: {chart.parts[0]}; pale: {chart.parts[1]})"
    figure.suptitle(title, x=0.012, ha="left", fontsize=10.5, color=_INK)
    small = "\n".join(textwrap.wrap(chart.conditions, _WRAP))
    figure.supxlabel(small, x=0.012, ha="left", fontsize=7.5, color=_FAINT, linespacing=1.35)
    return as_file(drawing.as_svg(figure), chart.title)


def as_file(svg: str, title: str) -> str:
    """A drawing with a size, a title and colours for dark pages of its own, as an <img> needs them."""
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert box is not None
    rules = "".join(
        f'[style*="{what}: {light.lower()}"]{{{what}:{dark} !important}}'
        for light, dark in _DARK.items()
        for what in ("fill", "stroke")
    )
    head, rest = svg.split(">", 1)
    size = f' width="{4 * float(box[1]) / 3:.0f}" height="{4 * float(box[2]) / 3:.0f}" role="img"'
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    return f"{head}{size}>\n<title>{escape(title)}</title>\n{style}{rest.rstrip()}\n"


def alternative(chart: Chart) -> str:
    """The chart in words, for those who do not see it."""
    return f"{chart.title}. " + ", ".join(f"{bar.name} {bar.words}" for bar in chart.bars)


def embedded(drawn: Sequence[Chart], folder: str) -> str:
    """The charts as Markdown."""
    return "\n\n".join(f"![{alternative(chart)}]({folder}/{chart.file})" for chart in drawn)
