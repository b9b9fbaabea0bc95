"""The command ``doctor``: what this machine can run, and what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from helium_onnx.cli_options import Json
from helium_onnx.terminal_output import print_json, stdout_console


def doctor(
    out: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="A bundle's folder: does it run here?", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what this machine can run, and what is missing.

    Processor, memory, ONNX Runtime, NVIDIA's driver, GPUs and libraries, other providers, and which recipes fit. Exit
    code 1 if none.
    """
    import helium_onnx

    report = helium_onnx.doctor(out)
    if as_json:
        print_json(report.to_dict())
    else:
        with stdout_console() as console:
            report.render(console)
    if not report.can_run:
        raise typer.Exit(1)
