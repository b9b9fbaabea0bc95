"""A report as one HTML file: no script, no reference to anything outside."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from helium_onnx.errors import HeliumOnnxError, UsageError
from helium_onnx.evaluation import charts, tables
from helium_onnx.evaluation.gates import Gates
from helium_onnx.evaluation.report import FidelityReport
from helium_onnx.terminal import visible

#: Bundles whose figures stand side by side on a page of A4 as it is; more turn it.
_UPRIGHT = 4


_LAYERS = "Relative squared error that the stored weights alone cause, activations in float32."


@dataclass(frozen=True)
class Chart:
    """A chart with what it shows, for those who see it and those who do not."""

    title: str
    caption: str
    svg: Markup


def check_target(path: Path) -> None:
    """Raise UsageError where no file can be written at ``path``."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder", expected="the name of a file")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}", remedy="make it, or choose another place for the page")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"no file can be written in {path.parent}", remedy="choose another place for the page")


def write(reports: Sequence[FidelityReport], path: Path, gates: Gates | None) -> None:
    """Render ``reports`` and write the page, whole or not at all. Raises HeliumOnnxError, UsageError."""
    check_target(path)
    text = render(reports, gates).encode("utf-8", errors="replace")
    partial = path.with_name(f".{path.name[:200]}.partial-{secrets.token_hex(8)}")
    try:
        partial.write_bytes(text)
        partial.replace(path)
    except OSError as error:
        raise HeliumOnnxError(f"{path} cannot be written", found=error.strerror) from error
    finally:
        partial.unlink(missing_ok=True)


def render(reports: Sequence[FidelityReport], gates: Gates | None = None) -> str:
    """The page's text. ``reports`` are of the same windows; one makes a report, several a comparison."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "figure": tables.figure,
        "figure4": tables.figure4,
        "token": lambda text: visible(text.replace("\n", "\\n").replace("\t", "\\t")),
        "share": tables.share,
        "error": tables.error,
        "visible": visible,
    }
    environment.filters.update(filters)
    template = environment.get_template("report.html.jinja")
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
    # matplotlib escapes what it writes into an SVG.
    return [Chart(title, caption, Markup(svg)) for title, caption, svg in drawn]
