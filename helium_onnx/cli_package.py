"""The command ``package``: what one place needs of a bundle, in the form that it takes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from helium_onnx.cli_options import Out, Quiet
from helium_onnx.interrupts import interrupts
from helium_onnx.progress import ProgressEvent
from helium_onnx.terminal import duration, progress_display, size


def package(
    out: Out,
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="Folder of the new package.", show_default=False)],
    target: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="desktop|android|ios|android-qnn|web|optimum",
            help="Where it is to run.",
            show_default=False,
        ),
    ],
    soc: Annotated[
        str | None,
        typer.Option(metavar="CHIP", help="For android-qnn: 75/57 or SM8650, for example.", show_default=False),
    ] = None,
    share_weights: Annotated[
        bool,
        typer.Option("--shared/--unshared", help="For android-qnn: one copy of the weights for prefill and decode."),
    ] = True,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace the package at DEST.")] = False,
    quiet: Quiet = False,
) -> None:
    """Package a bundle for one place that runs it.

    desktop, android and ios are projects of an app that the platform's own tools build, with the bundle in them.
    android-qnn compiles it for the NPU of a Snapdragon phone (pip install --no-deps onnxruntime-qnn==2.7.0). web takes
    what @helium-onnx/web loads in a browser, optimum what optimum's ORTModel classes load. The package is complete or
    absent, whatever happens.
    """
    import helium_onnx

    started = time.monotonic()
    with interrupts(second="ignored") as interrupt, progress_display(quiet=quiet, keep=True) as progress:

        def report(event: ProgressEvent) -> None:
            interrupt.check()
            progress(event)

        made = helium_onnx.package(
            out, dest, target=target, soc=soc, share_weights=share_weights, force=force, progress=report
        )
    took = duration(time.monotonic() - started)
    print(f"{dest}: {size(made.total_bytes)} in {took}. {_next(made.manifest.package, dest)}")


def _next(record: dict[str, object], dest: Path) -> str:
    """What to do with it, in a sentence."""
    if record["target"] in ("desktop", "android", "ios"):
        return f"Next: {dest / 'PACKAGE.md'} says how it is built; the bundle is {dest / 'model'}"
    if record["target"] == "web":
        return (
            'Next: put the folder on a server, and load("URL") of @helium-onnx/web; '
            f"contextLength {record['longest_context']} at most"
        )
    if record["target"] == "optimum":
        return f'Next: {record["class"]}.from_pretrained("{dest}") of optimum.onnxruntime; see docs/optimum.md'
    return f"Next: copy the folder to a device with {record['device']} ({record['chip']}); see docs/qnn.md"
