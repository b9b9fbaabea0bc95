"""The charts of a report's page, each as the text of one SVG element.

Letters are drawn as paths, so that a page looks and prints the same where a font is missing.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from helium_onnx.evaluation.report import FidelityReport
from helium_onnx.terminal import visible

#: Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), which colour-blind readers can tell apart, and print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":", "-.")
_SIZE = (4.4, 2.9)  # inches: letters of 9 points stay readable on a phone and in two columns of A4
#: Below this mean divergence bundles do not differ for any use; on a logarithmic axis they would push others aside.
KL_FLOOR = 1e-6
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "path",
    "svg.hashsalt": "helium-onnx",  # equal reports give equal pages
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


#: Bundles that one chart can tell apart by colour and name.
MOST = 6


def labels(reports: Sequence[FidelityReport]) -> list[str]:
    """A short name for each bundle: its recipe, its folder's name where two have one recipe, or its path."""
    recipes = [report.recipe for report in reports]
    folders = [Path(report.bundle).name for report in reports]
    return [
        r.recipe if recipes.count(r.recipe) == 1 else folder if folders.count(folder) == 1 else r.bundle
        for r, folder in zip(reports, folders, strict=True)
    ]


def kl_distribution(reports: Sequence[FidelityReport]) -> str:
    """Share of positions by KL divergence, on a logarithmic axis; for one bundle with its percentiles."""
    figure, axes = _axes()
    one = len(reports) == 1
    low, high = math.inf, -math.inf
    for index, (report, label) in enumerate(zip(reports, labels(reports), strict=True)):
        counts = np.array(report.histogram.counts, np.float64)
        edges = np.array(report.histogram.edges)
        share = 100 * counts / max(1.0, counts.sum())
        used = np.flatnonzero(counts)
        if len(used):
            low, high = min(low, edges[used[0]]), max(high, edges[used[-1] + 1])
        if one:
            axes.bar(edges[:-1], share, np.diff(edges), align="edge", color=COLOURS[0], edgecolor="white")
        else:
            axes.stairs(share, edges, color=_colour(index), linestyle=_dash(index), linewidth=1.6, label=_text(label))
    if one:
        f = reports[0].figures
        for name, value, height in (("mean", f.kl.value, 0.99), ("99 %", f.kl_percentiles[2], 0.99)):
            if math.isfinite(value) and value > 0:
                axes.axvline(math.log10(value), color="#444444", linewidth=0.9, linestyle="--")
                axes.annotate(
                    name, (math.log10(value), height), xycoords=("data", "axes fraction"), xytext=(3, 0),
                    textcoords="offset points", va="top", fontsize=8, color="#444444",
                )  # fmt: skip
    else:
        _legend(figure, axes)
    if math.isfinite(low):
        axes.set_xlim(low - 0.25, high + 0.25)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.xaxis.set_major_formatter(lambda value, _: f"$10^{{{round(value)}}}$")
    axes.set_xlabel("KL divergence at a position (nats)")
    axes.set_ylabel("% of positions")
    return _svg(figure)


def loss_per_layer(reports: Sequence[FidelityReport]) -> str:
    """Relative squared error of the residual stream after each layer, and for one bundle of each layer alone."""
    figure, axes = _axes()
    one = len(reports) == 1
    drawn = False
    for index, (report, label) in enumerate(zip(reports, labels(reports), strict=True)):
        rows = [row for row in report.layers if _positive(row.residual)]
        if rows:
            name = "residual stream" if one else _text(label)
            axes.plot(
                [row.layer + 1 for row in rows], [row.residual for row in rows],
                color=_colour(index), linestyle=_dash(index), marker="o", markersize=3, label=name,
            )  # fmt: skip
            drawn = True
        alone = [(row.layer + 1, row.local) for row in report.layers if row.local is not None and _positive(row.local)]
        if one and alone:
            axes.plot(*zip(*alone, strict=True), color=COLOURS[1], linestyle="--", marker="s", markersize=3,
                      label="layer alone")  # fmt: skip
    if drawn:
        axes.set_yscale("log")
        _legend(figure, axes)
        _wide_log(axes)
    else:
        _say(axes, "no error: the stored weights\nare the checkpoint's")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("after layer (0: embedding)")
    axes.set_ylabel("relative squared error")
    return _svg(figure)


def max_abs_by_position(reports: Sequence[FidelityReport]) -> str:
    """max |logit difference| over windows and tokens, by position in the window."""
    figure, axes = _axes()
    drawn = False
    for index, (report, label) in enumerate(zip(reports, labels(reports), strict=True)):
        values = np.array(report.max_abs_by_position)
        shown = np.isfinite(values) & (values > 0)
        if shown.any():
            axes.plot(np.flatnonzero(shown), values[shown], color=_colour(index), linewidth=0.8, label=_text(label))
            drawn = True
    if not drawn:
        _say(axes, "no difference")
    elif len(reports) > 1:
        axes.set_yscale("log")
        _legend(figure, axes)
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("position in the window")
    axes.set_ylabel("max |Δ logit|")
    return _svg(figure)


def loss_by_language(reports: Sequence[FidelityReport]) -> str:
    """ln(perplexity ratio) for each language, with standard errors."""
    figure, axes = _axes()
    languages = sorted({lang for report in reports for lang in report.languages})
    width = 0.8 / len(reports)
    for index, (report, label) in enumerate(zip(reports, labels(reports), strict=True)):
        found = [report.languages.get(lang) for lang in languages]
        heights = [f.ln_ratio.value if f and math.isfinite(f.ln_ratio.value) else 0.0 for f in found]
        errors = [f.ln_ratio.standard_error if f and math.isfinite(f.ln_ratio.standard_error) else 0.0 for f in found]
        places = np.arange(len(languages)) + (index - (len(reports) - 1) / 2) * width
        axes.bar(places, heights, 0.9 * width, yerr=errors, color=_colour(index), label=_text(label),
                 error_kw={"elinewidth": 0.9, "ecolor": "#444444", "capsize": 2})  # fmt: skip
    axes.axhline(0, color="#444444", linewidth=0.8)
    crowded = len(languages) > 8
    axes.set_xticks(
        range(len(languages)), [_text(lang) for lang in languages], rotation=60 if crowded else 0,
        ha="right" if crowded else "center",
    )  # fmt: skip
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("ln(perplexity ratio)")
    if len(reports) > 1:
        _legend(figure, axes)
    return _svg(figure)


def size_against_loss(reports: Sequence[FidelityReport], *, measure: str) -> str:
    """Megabytes against ``kl`` (mean divergence, logarithmic) or ``ln_ratio`` (with standard errors)."""
    figure, axes = _axes()
    kl = measure == "kl"
    sizes = [report.storage.bundle_bytes / 1e6 for report in reports]
    middle = (max(sizes) + min(sizes)) / 2
    for index, (report, label) in enumerate(zip(reports, labels(reports), strict=True)):
        estimate = report.figures.kl if kl else report.figures.ln_ratio
        if not math.isfinite(estimate.value):
            continue
        floored = kl and estimate.value < KL_FLOOR
        error = estimate.standard_error if math.isfinite(estimate.standard_error) and not kl else 0.0
        y = max(estimate.value, KL_FLOOR) if kl else estimate.value
        axes.errorbar(sizes[index], y, yerr=error or None, fmt="v" if floored else "o", color=_colour(index),
                      markersize=6, capsize=3)  # fmt: skip
        right = sizes[index] <= middle
        name = _text(label) if len(reports) <= MOST else str(index + 1)
        note = f" (≤ {KL_FLOOR:g})" if floored else ""
        axes.annotate(
            name + note, (sizes[index], y), xytext=(7 if right else -7, 5), textcoords="offset points",
            ha="left" if right else "right", fontsize=8, color=_colour(index),
        )  # fmt: skip
    if kl:
        axes.set_yscale("log")
        _wide_log(axes)
    axes.margins(x=0.12, y=0.15)
    axes.set_xlim(left=0)
    axes.set_xlabel("bundle (MB)")
    axes.set_ylabel("mean KL divergence (nats)" if kl else "ln(perplexity ratio)")
    return _svg(figure)


def _axes() -> tuple[Figure, Axes]:
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=_SIZE, layout="constrained")
        return figure, figure.add_subplot()


def _legend(figure: Figure, axes: Axes) -> None:
    """Above the plot, where it hides nothing."""
    handles, names = axes.get_legend_handles_labels()
    if handles:
        columns = 1 if max(map(len, names)) > 24 else min(3, len(names))
        with matplotlib.rc_context(_SETTINGS):
            figure.legend(handles, names, loc="outside upper left", ncols=columns, handlelength=2.2)


def _wide_log(axes: Axes) -> None:
    """At least two decades, or a logarithmic axis has no label at all."""
    low, high = axes.get_ylim()
    high *= 1.5  # room for a label at the highest point
    while high / low < 100:
        low, high = low / 1.3, high * 1.3
    axes.set_ylim(low, high)


def _say(axes: Axes, words: str) -> None:
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color="#666666")
    axes.set_yticks([])


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _dash(index: int) -> str:
    return _DASHES[index // len(COLOURS) % len(_DASHES)]


def _text(label: str) -> str:
    """A label as it stands: no formula between dollars, and not longer than a chart bears."""
    short = label if len(label) <= 40 else f"...{label[-37:]}"
    return visible(" ".join(short.split())).replace("\\", "/").replace("$", r"\$")


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font lacks is drawn as a box, and that is all
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    svg = text[text.index("<svg") :]
    # Its box says how large it is; the page says how wide it is shown.
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return re.sub(r"<metadata>.*?</metadata>", "", f"{head}>{rest}", flags=re.DOTALL)
