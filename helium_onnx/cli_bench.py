"""The command ``bench``: how fast a bundle runs here, and how far that is from what the machine could do."""

from __future__ import annotations

from typing import Annotated

import typer

from helium_onnx.cli_options import Cache, CacheDir, Html, Json, Kernels, Out, Provider, Quiet, Threads
from helium_onnx.errors import UsageError
from helium_onnx.interrupts import interrupts
from helium_onnx.terminal import progress_display
from helium_onnx.terminal_output import print_json, stdout_console


def bench(
    out: Out,
    prompt: Annotated[
        str | None, typer.Option(metavar="N,N", help="Prompts, in tokens.", show_default="32,128,512,2048")
    ] = None,
    past: Annotated[
        str | None, typer.Option(metavar="N,N", help="Tokens before a decode step.", show_default="0,512,2048")
    ] = None,
    batch: Annotated[
        str | None, typer.Option(metavar="N,N", help="Rows that decode together.", show_default="1,4,16")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(metavar="N", help="Measure every case N times.", show_default="5")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer cases and rounds: a first look.")] = False,
    threads: Threads = None,
    provider: Provider = "auto",
    kernels: Kernels = "auto",
    cache: Cache = None,
    cache_dir: CacheDir = None,
    html: Html = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure speed, and how near it is to the machine's limits.

    Load, prefill and decode, in rounds over all cases, beside what memory and arithmetic of this machine would allow.
    Close other programs first. --html needs pip install 'helium-onnx[eval]'.
    """
    import helium_onnx

    lengths = {name: _numbers(name, text) for name, text in (("prompt", prompt), ("past", past), ("batch", batch))}
    from helium_onnx.runtimes.opening import checked_choice

    chosen_kernels = checked_choice(kernels)
    if html is not None:
        from helium_onnx.benchmark.report import check_page

        check_page(html)  # before the work, not after it
    with interrupts(second="quits"), progress_display(quiet=quiet) as progress:
        report = helium_onnx.bench(
            out,
            **lengths,
            rounds=rounds,
            quick=quick,
            threads=threads,
            provider=provider,
            kernels=chosen_kernels,
            cache=cache,
            cache_dir=cache_dir,
            progress=progress,
        )
    if html is not None:
        report.write_html(html)
    if as_json:
        print_json(report.to_dict())
    else:
        with stdout_console() as console:
            report.render(console)


def _numbers(name: str, text: str | None) -> list[int] | None:
    """Of ``32,128``. Raises UsageError."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if wrong := [part for part in parts if not (part.isascii() and part.isdigit() and len(part) < 10)]:
        raise UsageError(
            f"--{name} has something that is no number of tokens" if name != "batch" else "--batch has no number",
            found=repr(wrong[0]),
            expected=f"whole numbers with commas between, as --{name} 1,4",
        )
    return [int(part) for part in parts]
