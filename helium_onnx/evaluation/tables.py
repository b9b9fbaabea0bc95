"""Fidelity reports on a terminal of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from helium_onnx.evaluation.fidelity import PERCENTILES, Estimate, Figures
from helium_onnx.terminal import size, visible

if TYPE_CHECKING:
    from rich.console import Console

    from helium_onnx.evaluation.report import Conditions, FidelityComparison, FidelityReport


def figure(value: float | None) -> str:
    """Three digits: ``0.0325``, ``3.19e-12``, ``10.3``; ``n/a`` where there is no number."""
    if value is None or not math.isfinite(value):
        return "n/a"
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e6:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:.{digits}f}"
    return f"{value:.2e}"


def share(value: float) -> str:
    """A rate as a percentage: ``93.51 %``; 100 % only where it is exactly that."""
    if not math.isfinite(value):
        return "n/a"
    text = f"{100 * value:.2f}"
    return "> 99.99 %" if text == "100.00" and value < 1 else f"{text} %"


def error(estimate: Estimate, scale: float = 1.0) -> str:
    """``± 0.0015``: one standard error; nothing where one window gives none."""
    if not math.isfinite(estimate.standard_error):
        return ""
    return f"± {figure(scale * estimate.standard_error)}"


def summary(report: FidelityReport) -> list[tuple[str, str, str]]:
    """The main figures: name, value, and what belongs to it (an error, a unit)."""
    f = report.figures
    greedy, storage = report.greedy_summary, report.storage
    bits = storage.bits_per_weight.get("all")
    percentiles = dict(zip(PERCENTILES, f.kl_percentiles, strict=True))
    flips = f.lost + f.gained
    median = "none" if greedy.median_equal is None else f"{greedy.median_equal:g}"
    return [
        ("perplexity", figure4(f.perplexity), f"reference {figure4(f.reference_perplexity)}"),
        ("ln(perplexity ratio)", figure(f.ln_ratio.value), error(f.ln_ratio)),
        ("KL divergence, mean", figure(f.kl.value), f"{error(f.kl)} nats".strip()),
        *((f"KL divergence, {p:g} %", figure(percentiles[p]), "nats") for p in PERCENTILES[1:]),
        ("KL divergence, maximum", figure(f.kl_max), "nats"),
        ("same top-1", share(f.same_top1.value), f"{error(f.same_top1, 100)} %" if error(f.same_top1) else ""),
        ("flips", f"{flips:,}", f"{f.lost:,} right to wrong, {f.gained:,} wrong to right"),
        ("max |Δ logit|", figure(f.max_abs), "over all positions and tokens"),
        ("greedy divergence", median, f"median token; {greedy.equal_texts} of {greedy.texts} texts stay equal"),
        ("bits per weight", "n/a" if bits is None else f"{bits:.2f}", "all matrices, scales included"),
        ("bundle", size(storage.bundle_bytes), f"weights {size(storage.weights_bytes)}"),
        *([("not finite", f"{f.not_finite:,}", "positions")] if f.not_finite else []),
    ]


def figure4(value: float) -> str:
    """A perplexity: four digits behind the point, since bundles differ there."""
    return f"{value:.4f}" if math.isfinite(value) and value < 1e6 else figure(value)


def threads(c: Conditions) -> str:
    """``2 threads on ``, before the machine; nothing where the bundle ran on a GPU."""
    return f"{c.threads} threads on " if c.threads else ""


def conditions(c: Conditions) -> str:
    """Where the figures are from, in one sentence."""
    return (
        f"{c.windows} windows of at most {c.max_tokens} tokens ({c.tokens:,} in all, <s> in each) of {c.text}; "
        f"reference: {c.against} in PyTorch, float32; {threads(c)}{c.machine}; "
        + ", ".join(f"{name} {version}" for name, version in c.versions.items())
    )


def render_report(report: FidelityReport, console: Console) -> None:
    """Print the figures, then languages, greedy texts and layers."""
    console.print(Text(visible(f"{report.bundle} ({report.recipe}) against {report.conditions.against}"), style="bold"))
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column()
    grid.add_column(justify="right")
    grid.add_column(style="dim")
    for row in summary(report):
        grid.add_row(*row)
    console.print(grid)
    if report.languages:
        console.print()
        console.print(_languages(report.languages))
    console.print()
    console.print(
        _table(
            ("greedy text", "line", "equal tokens", "parts at", "the reference's lead"),
            (
                (
                    row.lang or "-",
                    str(row.line),
                    f"{row.equal} of {row.tokens}",
                    str(row.equal) if row.parts else f"none in {row.tokens}",
                    figure(row.gap) if row.parts else "",
                )
                for row in report.greedy
            ),
        )
    )
    console.print()
    console.print(
        _table(
            ("layer", "error of the stream", "of the layer alone"),
            (
                ("embedding" if row.layer < 0 else str(row.layer), figure(row.residual),
                 "" if row.local is None else figure(row.local))
                for row in report.layers
            ),
        )
    )  # fmt: skip
    console.print()
    _footer([report], console)


def render_comparison(comparison: FidelityComparison, console: Console) -> None:
    """Print one row a bundle."""
    reports = comparison.reports
    console.print(Text(visible(f"against {reports[0].conditions.against}"), style="bold"))
    columns = ("bundle", "MB", "bits", "ln ratio", "mean KL", "99 % KL", "top-1", "greedy")
    p99 = PERCENTILES.index(99.0)
    console.print(
        _table(
            columns,
            (
                (
                    r.recipe,
                    f"{r.storage.bundle_bytes / 1e6:,.1f}",
                    figure(r.storage.bits_per_weight.get("all")),
                    figure(r.figures.ln_ratio.value),
                    figure(r.figures.kl.value),
                    figure(r.figures.kl_percentiles[p99]),
                    share(r.figures.same_top1.value),
                    f"{r.greedy_summary.equal_texts}/{r.greedy_summary.texts}",
                )
                for r in reports
            ),
        )
    )
    console.print()
    for report in reports:
        console.print(Text(visible(f"{report.recipe}: {report.bundle}")), style="dim", soft_wrap=True)
    _footer(reports, console)


def _languages(languages: dict[str, Figures]) -> Table:
    return _table(
        ("language", "tokens", "reference", "perplexity", "ln ratio", "mean KL", "top-1"),
        (
            (
                lang,
                f"{f.positions:,}",
                figure(f.reference_perplexity),
                figure(f.perplexity),
                figure(f.ln_ratio.value),
                figure(f.kl.value),
                share(f.same_top1.value),
            )
            for lang, f in languages.items()
        ),
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))  # Text: brackets are no markup
    return table


def _footer(reports: Sequence[FidelityReport], console: Console) -> None:
    for report in reports:
        if report.warning:
            console.print(Text(visible(f"warning: {report.bundle}: {report.warning}"), style="yellow"))
    console.print(Text(visible(conditions(reports[0].conditions)), style="dim"))
