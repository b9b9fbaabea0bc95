"""A benchmark as one HTML file: no script, no reference to anything outside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from helium_onnx import pages
from helium_onnx.benchmark import charts, tables
from helium_onnx.benchmark.report import BenchReport
from helium_onnx.pages import Chart, check_target
from helium_onnx.terminal import size, visible


def write(report: BenchReport, path: Path) -> None:
    """Render the report and write the page, whole or not at all. Raises HeliumOnnxError, UsageError."""
    check_target(path)
    pages.write(render(report), path)


def render(report: BenchReport) -> str:
    """The page's text."""
    filters: dict[str, Callable[..., str]] = {
        "visible": visible,
        "size": size,
        "milliseconds": tables.milliseconds,
        "three_digits": tables.three_digits,
        "limit": tables.limit,
        "sentence": tables.sentence,
    }
    template = pages.template(Path(__file__).with_name("bench.html.jinja"), filters)
    return template.render(
        report=report,
        conditions=report.conditions,
        rates=tables.rates(report),
        ran_by=tables.ran_by(report),
        notes=tables.notes(report),
        charts=_charts(report),
    )


def _charts(report: BenchReport) -> list[Chart]:
    drawn = []
    if report.decode:
        drawn += [
            (
                "Decode and its ceilings",
                "Median of the steps, from p10 to p90; marks are what the machine would allow.",
                charts.decode(report),
            ),
            (
                "What a step reads and writes",
                "Bytes that a step must move, by what they are.",
                charts.traffic(report),
            ),
            (
                "Decode steps, one by one",
                "Share of the steps that took at most so long; the slowest may lie outside.",
                charts.steps(report),
            ),
        ]
    if report.prefill:
        drawn.append(
            (
                "Prefill and its ceilings",
                "Median of the rounds, from p10 to p90; lines are what the machine would allow.",
                charts.prefill(report),
            )
        )
    drawn.append(
        (
            "From process start to the first token",
            f"Medians; the prompt has {report.warm.prompt_tokens} tokens.",
            charts.loads(report),
        )
    )
    return [Chart(*chart) for chart in drawn]
