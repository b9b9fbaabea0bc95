"""A report as one HTML file: no script, no reference to anything outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from helium_onnx import pages
from helium_onnx.evaluation import charts, tables
from helium_onnx.evaluation.gates import Gates
from helium_onnx.evaluation.report import FidelityReport
from helium_onnx.pages import Chart, check_target
from helium_onnx.terminal import visible

#: Bundles whose figures stand side by side on a page of A4 as it is; more turn it.
_UPRIGHT = 4


_LAYERS = "Relative squared error that the stored weights alone cause, activations in float32."


def write(reports: Sequence[FidelityReport], path: Path, gates: Gates | None) -> None:
    """Render ``reports`` and write the page, whole or not at all. Raises HeliumOnnxError, UsageError."""
    check_target(path)
    pages.write(render(reports, gates), path)


def render(reports: Sequence[FidelityReport], gates: Gates | None = None) -> str:
    """The page's text. ``reports`` are of the same windows; one makes a report, several a comparison."""
    filters: dict[str, Callable[..., str]] = {
        "figure": tables.figure,
        "figure4": tables.figure4,
        "token": lambda text: visible(text.replace("\n", "\\n").replace("\t", "\\t")),
        "share": tables.share,
        "error": tables.error,
        "visible": visible,
    }
    template = pages.template(Path(__file__).with_name("report.html.jinja"), filters)
    names = charts.labels(reports)
    summaries = [tables.summary(report) for report in reports]
    return template.render(
        reports=list(zip(names, reports, strict=True)),
        one=len(reports) == 1,
        landscape=len(reports) > _UPRIGHT,
        conditions=reports[0].conditions,
        rows=[[row[index] for row in summaries] for index in range(min(map(len, summaries)))],
        charts=_charts(reports),
        gates=gates,
        failures=[failure for report in reports for failure in report.failures(gates)] if gates else [],
    )


def _charts(reports: Sequence[FidelityReport]) -> list[Chart]:
    several, count = len(reports) > 1, len(reports)
    drawn = []
    numbers = " Numbers are the bundles' places in the table, from the left." if count > charts.MOST else ""
    few = f" The first {charts.MOST} of {count} bundles." if count > charts.MOST else ""
    if several:
        drawn += [
            ("Size against loss", "Lower and further left is better; bars are one standard error." + numbers,
             charts.size_against_loss(reports, measure="ln_ratio")),
            ("Size against divergence", "The same with the mean KL divergence, on a logarithmic axis." + numbers,
             charts.size_against_loss(reports, measure="kl")),
        ]  # fmt: skip
    reports = reports[: charts.MOST]
    drawn += [
        ("Distribution of the KL divergence", "How far the next-token distributions are apart, by position." + few,
         charts.kl_distribution(reports)),
        ("Loss per layer", _LAYERS + (" A bundle without error has no line." if several else "") + few,
         charts.loss_per_layer(reports)),
    ]  # fmt: skip
    if any(report.languages for report in reports):
        drawn.append(("Loss by language", "Bars are one standard error." + few, charts.loss_by_language(reports)))
    drawn.append(
        ("Largest difference of a logit", "Over all windows and tokens, by position in the window." + few,
         charts.max_abs_by_position(reports))
    )  # fmt: skip
    return [Chart(*chart) for chart in drawn]
