"""The charts of a report's page, each as the text of one SVG element."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator

from helium_onnx.evaluation.report import FidelityReport
from helium_onnx.pages import drawing

#: Below this mean divergence bundles do not differ for any use; on a logarithmic axis they would push others aside.
KL_FLOOR = 1e-6
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
    figure, axes = drawing.new_axes()
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
            axes.bar(edges[:-1], share, np.diff(edges), align="edge", color=drawing.COLOURS[0], edgecolor="white")
        else:
            axes.stairs(
                share,
                edges,
                color=drawing.colour(index),
                linestyle=drawing.dash(index),
                linewidth=1.6,
                label=drawing.label_text(label),
            )
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
        drawing.legend(figure, axes)
    if math.isfinite(low):
        axes.set_xlim(low - 0.25, high + 0.25)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.xaxis.set_major_formatter(lambda value, _: f"$10^{{{round(value)}}}$")
    axes.set_xlabel("KL divergence at a position (nats)")
    axes.set_ylabel("% of positions")
    return drawing.as_svg(figure)


def loss_per_layer(reports: Sequence[FidelityReport]) -> str:
    """Relative squared error of the residual stream after each layer, and for one bundle of each layer alone."""
    figure, axes = drawing.new_axes()
    one = len(reports) == 1
    drawn = False
    for index, (report, label) in enumerate(zip(reports, labels(reports), strict=True)):
        rows = [row for row in report.layers if drawing.positive(row.residual)]
        if rows:
            name = "residual stream" if one else drawing.label_text(label)
            axes.plot(
                [row.layer + 1 for row in rows], [row.residual for row in rows],
                color=drawing.colour(index), linestyle=drawing.dash(index), marker="o", markersize=3, label=name,
            )  # fmt: skip
            drawn = True
        alone = [
            (row.layer + 1, row.local) for row in report.layers if row.local is not None and drawing.positive(row.local)
        ]
        if one and alone:
            axes.plot(*zip(*alone, strict=True), color=drawing.COLOURS[1], linestyle="--", marker="s", markersize=3,
                      label="layer alone")  # fmt: skip
    if drawn:
        axes.set_yscale("log")
        drawing.legend(figure, axes)
        drawing.wide_log(axes)
    else:
        drawing.say(axes, "no error: the stored weights\nare the checkpoint's")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("after layer (0: embedding)")
    axes.set_ylabel("relative squared error")
    return drawing.as_svg(figure)


def max_abs_by_position(reports: Sequence[FidelityReport]) -> str:
    """max |logit difference| over windows and tokens, by position in the window."""
    figure, axes = drawing.new_axes()
    drawn = False
    for index, (report, label) in enumerate(zip(reports, labels(reports), strict=True)):
        values = np.array(report.max_abs_by_position)
        shown = np.isfinite(values) & (values > 0)
        if shown.any():
            axes.plot(
                np.flatnonzero(shown),
                values[shown],
                color=drawing.colour(index),
                linewidth=0.8,
                label=drawing.label_text(label),
            )
            drawn = True
    if not drawn:
        drawing.say(axes, "no difference")
    elif len(reports) > 1:
        axes.set_yscale("log")
        drawing.legend(figure, axes)
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("position in the window")
    axes.set_ylabel("max |Δ logit|")
    return drawing.as_svg(figure)


def loss_by_language(reports: Sequence[FidelityReport]) -> str:
    """ln(perplexity ratio) for each language, with standard errors."""
    figure, axes = drawing.new_axes()
    languages = sorted({lang for report in reports for lang in report.languages})
    width = 0.8 / len(reports)
    for index, (report, label) in enumerate(zip(reports, labels(reports), strict=True)):
        found = [report.languages.get(lang) for lang in languages]
        heights = [f.ln_ratio.value if f and math.isfinite(f.ln_ratio.value) else 0.0 for f in found]
        errors = [f.ln_ratio.standard_error if f and math.isfinite(f.ln_ratio.standard_error) else 0.0 for f in found]
        places = np.arange(len(languages)) + (index - (len(reports) - 1) / 2) * width
        axes.bar(
            places, heights, 0.9 * width, yerr=errors, color=drawing.colour(index), label=drawing.label_text(label),
            error_kw={"elinewidth": 0.9, "ecolor": "#444444", "capsize": 2},
        )  # fmt: skip
    axes.axhline(0, color="#444444", linewidth=0.8)
    crowded = len(languages) > 8
    axes.set_xticks(
        range(len(languages)), [drawing.label_text(lang) for lang in languages], rotation=60 if crowded else 0,
        ha="right" if crowded else "center",
    )  # fmt: skip
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("ln(perplexity ratio)")
    if len(reports) > 1:
        drawing.legend(figure, axes)
    return drawing.as_svg(figure)


def size_against_loss(reports: Sequence[FidelityReport], *, measure: str) -> str:
    """Megabytes against ``kl`` (mean divergence, logarithmic) or ``ln_ratio`` (with standard errors)."""
    figure, axes = drawing.new_axes()
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
        axes.errorbar(sizes[index], y, yerr=error or None, fmt="v" if floored else "o", color=drawing.colour(index),
                      markersize=6, capsize=3)  # fmt: skip
        right = sizes[index] <= middle
        name = drawing.label_text(label) if len(reports) <= MOST else str(index + 1)
        note = f" (≤ {KL_FLOOR:g})" if floored else ""
        axes.annotate(
            name + note, (sizes[index], y), xytext=(7 if right else -7, 5), textcoords="offset points",
            ha="left" if right else "right", fontsize=8, color=drawing.colour(index),
        )  # fmt: skip
    if kl:
        axes.set_yscale("log")
        drawing.wide_log(axes)
    axes.margins(x=0.12, y=0.15)
    axes.set_xlim(left=0)
    axes.set_xlabel("bundle (MB)")
    axes.set_ylabel("mean KL divergence (nats)" if kl else "ln(perplexity ratio)")
    return drawing.as_svg(figure)
