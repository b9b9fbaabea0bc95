"""The report as a person reads it: a mark for each line, the remedy below it, and at the end what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from helium_onnx.terminal import visible
from helium_onnx.terminal_output import marks, quoted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from helium_onnx.diagnosis.report import DoctorReport, Finding

#: What one would try first, where it runs: the checkpoint's own weights, then the fewest bytes.
_FIRST_CHOICES = ("cuda-bf16", "cuda-fp16", "cuda-int4", "cpu-int4")
_TITLES = {"CPU": "CPU", "CUDA": "CUDA", "others": "Other providers", "bundle": "Bundle"}


def render(report: DoctorReport, console: Console) -> None:
    """Print ``report``. Nothing is cut: long lines go on below themselves, commands to the terminal's edge."""
    from rich.text import Text

    versions = ", ".join(f"{name} {version or 'missing'}" for name, version in report.versions.items())
    console.print(Text(versions, style="dim"))
    width = max((len(finding.name) for finding in report.findings), default=0)
    for part, title in _TITLES.items():
        findings = [finding for finding in report.findings if finding.part == part]
        if findings:
            console.print()
            console.print(Text(title, style="bold"))
            _print_findings(findings, width, console)
    if report.recipes:
        console.print()
        _print_recipes(report, console)
    console.print()
    console.print(Text(visible(_conclusion(report))))


def _print_findings(findings: list[Finding], width: int, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    for finding in findings:
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_column(width=max(map(len, marks())), no_wrap=True)
        line.add_column(width=width, no_wrap=True)
        line.add_column(overflow="fold")
        line.add_row(_mark(finding.ok), finding.name, Text(visible(finding.detail)))
        console.print(line)
        if finding.remedy is not None:  # the terminal breaks a long command by itself, so that it can be copied whole
            remedy = Text(f"   remedy: {visible(finding.remedy)}", style="yellow" if finding.ok is False else "dim")
            console.print(remedy, soft_wrap=True)


def _print_recipes(report: DoctorReport, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    heading = Text(visible(report.model), style="bold")
    console.print(heading.append(f", one text of {report.context_length} tokens", style="not bold"))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(overflow="fold")
    for fit in report.recipes:
        needed = "" if fit.needed_bytes is None else f"{fit.needed_bytes / 1e9:.1f} GB"
        table.add_row(_mark(fit.runs), fit.recipe, needed, Text(visible(fit.why)))
    console.print(table)


def _mark(ok: bool | None) -> Text:
    from rich.text import Text

    good, bad = marks()
    if ok is None:
        return Text("-", style="dim")
    return Text(good, style="green") if ok else Text(bad, style="bold red")


def _conclusion(report: DoctorReport) -> str:
    running = [fit.recipe for fit in report.recipes if fit.runs]
    if not running and report.bundle is not None:
        return "This bundle does not run here: see above."
    if not running:
        return "Nothing runs here as it is: see above."
    if report.bundle is not None:
        return f'Next: helium-onnx generate {quoted(Path(report.bundle))} "Your text"'
    first = next((name for name in _FIRST_CHOICES if name in running), running[0])
    return f"Next: helium-onnx export CHECKPOINT OUT --recipe {first}"
