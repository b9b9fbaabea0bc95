"""The charts of a benchmark's page, each as the text of one SVG element."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from helium_onnx.benchmark.report import BenchReport, DecodeResult
from helium_onnx.pages import drawing

_LIMITS = (("memory allows", "memory_seconds", "_", 1), ("arithmetic allows", "arithmetic_seconds", "x", 2))


def decode(report: BenchReport) -> str:
    """Milliseconds of a step: bars with p10 and p90, and both ceilings as marks."""
    figure, axes = drawing.new_axes()
    rows = report.decode
    medians = np.array([1e3 * row.seconds.median for row in rows])
    errors = np.array([[m - 1e3 * r.seconds.p10, 1e3 * r.seconds.p90 - m] for r, m in zip(rows, medians, strict=True)])
    places = np.arange(len(rows))
    axes.bar(places, medians, 0.62, color=drawing.COLOURS[5], label="measured")
    axes.errorbar(places, medians, np.maximum(errors, 0).T, fmt="none", ecolor="#444444", elinewidth=0.9, capsize=3)
    for name, field, marker, colour in _LIMITS:
        values = [getattr(row.ceiling, field) for row in rows]
        if all(value is not None for value in values):
            axes.plot(
                places, [1e3 * value for value in values], marker, color=drawing.COLOURS[colour], label=name,
                markersize=24 if marker == "_" else 7, markeredgewidth=2.2,
            )  # fmt: skip
    axes.set_xticks(places, _names(rows))
    axes.grid(visible=False, axis="x")
    # A disturbed step takes many times the median: its bar may leave the chart, so that the medians can be told apart.
    axes.set_ylim(0, min(1.06 * float((medians + errors[:, 1]).max()), 2.2 * float(medians.max())))
    axes.set_ylabel("ms a step")
    drawing.legend(figure, axes)
    return drawing.as_svg(figure)


def traffic(report: BenchReport) -> str:
    """Megabytes that a step must move: weights, keys and values."""
    figure, axes = drawing.new_axes()
    rows = report.decode
    places, bottom = np.arange(len(rows)), np.zeros(len(rows))
    parts = (
        ("weights", [row.work.weight_bytes + row.work.embedding_bytes for row in rows]),
        ("keys and values", [row.work.cache_read_bytes + row.work.cache_write_bytes for row in rows]),
    )
    for index, (name, counts) in enumerate(parts):
        heights = np.array(counts) / 1e6
        axes.bar(places, heights, 0.62, bottom=bottom, color=drawing.colour(index), label=name)
        bottom += heights
    axes.set_xticks(places, _names(rows))
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("MB a step")
    drawing.legend(figure, axes)
    return drawing.as_svg(figure)


def steps(report: BenchReport) -> str:
    """How the single steps are distributed: the share that took at most a time."""
    figure, axes = drawing.new_axes()
    for index, row in enumerate(report.decode):
        times = 1e3 * np.sort(row.samples)
        axes.step(
            times, 100 * np.arange(1, len(times) + 1) / len(times), where="post", color=drawing.colour(index),
            linestyle=drawing.dash(index), linewidth=1.4, label=_names([row])[0].replace("\n", ", "),
        )  # fmt: skip
    medians = [1e3 * row.seconds.median for row in report.decode]
    if max(medians) > 4 * min(medians):
        axes.set_xscale("log")
        _plain_log(axes)
    # To the right of that are steps that something else disturbed.
    least = 1e3 * min(min(row.samples) for row in report.decode)
    axes.set_xlim(0.9 * least, 1.3 * max(1e3 * row.seconds.p90 for row in report.decode))
    axes.set_ylim(0, 102)
    axes.set_xlabel("ms a step")
    axes.set_ylabel("% of the steps")
    drawing.legend(figure, axes)
    return drawing.as_svg(figure)


def prefill(report: BenchReport) -> str:
    """Tokens a second by the prompt's length, on logarithmic axes, with both ceilings."""
    figure, axes = drawing.new_axes()
    rows = report.prefill
    tokens = [row.tokens for row in rows]
    rates = np.array([row.tokens_per_second for row in rows])
    ends = np.array([[row.tokens / row.seconds.p90, row.tokens / row.seconds.p10] for row in rows])
    errors = np.maximum(np.abs(ends - rates[:, None]), 0)
    axes.errorbar(tokens, rates, errors.T, marker="o", markersize=4, color=drawing.COLOURS[0], capsize=3,
                  ecolor="#444444", elinewidth=0.9, label="measured")  # fmt: skip
    for name, field, _, colour in _LIMITS:
        values = [getattr(row.ceiling, field) for row in rows]
        if all(values):
            axes.plot(
                tokens, [row.tokens / value for row, value in zip(rows, values, strict=True)], "--",
                color=drawing.COLOURS[colour], label=name,
            )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    drawing.wide_log(axes)
    _plain_log(axes, y=True)
    axes.set_xticks(tokens, [f"{count:,}" for count in tokens])
    axes.minorticks_off()
    axes.set_xlabel("tokens of the prompt")
    axes.set_ylabel("tokens/s")
    drawing.legend(figure, axes)
    return drawing.as_svg(figure)


def loads(report: BenchReport) -> str:
    """Seconds from process start to the first token, in their parts."""
    figure, axes = drawing.new_axes()
    named = [("warm", report.warm), *([("cold", report.cold)] if report.cold else [])]
    left = np.zeros(len(named))
    moments = [
        ("Python and libraries", [load.import_seconds for _, load in named]),
        ("load", [load.loaded_seconds for _, load in named]),
        ("first token", [load.first_token_seconds for _, load in named]),
    ]
    for index, (name, ends) in enumerate(moments):
        widths = np.maximum(np.array(ends) - left, 0)
        axes.barh(np.arange(len(named)), widths, 0.5, left=left, color=drawing.colour(index), label=name)
        left = left + widths
    axes.set_yticks(range(len(named)), [name for name, _ in named])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("seconds from process start")
    drawing.legend(figure, axes)
    return drawing.as_svg(figure)


def _names(rows: Sequence[DecodeResult]) -> list[str]:
    return [f"past {row.past:,}\nbatch {row.batch}" for row in rows]


def _plain_log(axes: Axes, *, y: bool = False) -> None:
    """Numbers as they are spoken on a logarithmic axis: 20, 50, 100, not powers."""
    axis = axes.yaxis if y else axes.xaxis
    axis.set_major_locator(LogLocator(subs=(1,) if y else (1, 2, 5)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
