"""The command line: one command = one public function, flags = its keywords. No framework is loaded to show help.

Results go to stdout, everything else (progress, statistics, errors) to stderr. Exit codes: 0; 1 for an error or a
check that failed; 2 for a wrong use; 128 + n after signal n (130 after Ctrl-C).
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from helium_onnx.cli_adapter import convert_adapter
from helium_onnx.cli_batch import batch
from helium_onnx.cli_bench import bench
from helium_onnx.cli_doctor import doctor
from helium_onnx.cli_encode import classify, embed, tag
from helium_onnx.cli_evaluation import compare, overflow, validate
from helium_onnx.cli_generate import generate
from helium_onnx.cli_options import Json, Out, Quiet
from helium_onnx.cli_package import package
from helium_onnx.interrupts import interrupts
from helium_onnx.progress import ProgressEvent
from helium_onnx.tasks import ROWS
from helium_onnx.terminal import (
    duration,
    finish_output,
    progress_display,
    show_error,
    size,
    visible,
)
from helium_onnx.terminal_output import marks, print_json, quoted, stdout_console

if TYPE_CHECKING:
    from helium_onnx.recipe import MatrixSettings, Recipe


class Commands(TyperGroup):
    """Shows every error of a command in one form. Wrong options are typer's to report (exit code 2)."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, (typer.Exit, typer.Abort, *typer.BadParameter.__bases__)):
                raise
            raise typer.Exit(show_error(error, debug=ctx.params.get("debug", False))) from None


app = typer.Typer(
    cls=Commands,
    help="Export Helium language models to ONNX bundles, and run them.",
    epilog="A command's own options: helium-onnx COMMAND --help",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        from helium_onnx import __version__

        print(f"helium-onnx {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options that stand before the command."""


@app.command()
def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="Folder or Hub id, as kyutai/helium-1-preview-2b.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the new bundle.", show_default=False)],
    task: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="text-generation, feature-extraction, text-classification, token-classification.",
            show_default="the checkpoint's",
        ),
    ] = "auto",
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", metavar="NAME|FILE", help="See helium-onnx recipes, or your own TOML file.")
    ] = "cpu-int4",
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text to weigh errors by, as JSON Lines.", show_default="a shipped text"),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Choose each matrix's bits to fit: 1.2GB, or 4.8bits a weight.", show_default=False
        ),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(metavar="NATS", help="Choose each matrix's bits by this estimated loss.", show_default=False),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(metavar="N", help="Tokens that graphs of fixed shapes hold.", show_default="the recipe's"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace the bundle at OUT.")] = False,
    revision: Annotated[
        str | None,
        typer.Option(metavar="REV", help="Branch, tag or commit on the Hub.", show_default="main"),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use the Hub's cache alone, no network.")] = False,
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]DIR", help="LoRA adapter of peft; may be given again.", show_default=False),
    ] = None,
    adapter_mode: Annotated[
        str, typer.Option(metavar="merge|runtime", help="Into the weights, or beside them, chosen per request.")
    ] = "merge",
    quiet: Quiet = False,
) -> None:
    """Turn a checkpoint into a bundle.

    The bundle is complete or absent, whatever happens. Needs pip install 'helium-onnx[export]'.
    """
    import helium_onnx
    from helium_onnx.adapters.given import checked_mode, named_folders

    started = time.monotonic()
    with interrupts(second="ignored") as interrupt, progress_display(quiet=quiet, keep=True) as progress:

        def report(event: ProgressEvent) -> None:
            interrupt.check()
            progress(event)

        report(ProgressEvent("start", "loading PyTorch"))
        bundle = helium_onnx.export(
            checkpoint,
            out,
            task=task,
            recipe=recipe,
            calibration=calibration,
            budget=budget,
            max_kl=max_kl,
            context_length=context,
            force=force,
            revision=revision,
            offline=offline,
            adapter=named_folders(adapter or ()),
            adapter_mode=checked_mode(adapter_mode),
            progress=report,
        )
    allocation = bundle.manifest.quantization.get("allocation")
    if allocation is not None and not quiet:
        from helium_onnx import allocation_table

        with stdout_console() as console:
            allocation_table.render(allocation, console)
    name = quoted(out)
    print(
        f"{out}: {size(bundle.total_bytes)} in {duration(time.monotonic() - started)}."
        f' Next: helium-onnx {ROWS[bundle.task].verb} {name} "Your text"'
    )


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the recipes: target, precision, graph form, why."""
    import helium_onnx

    listed = helium_onnx.list_recipes()
    if as_json:
        print_json([recipe.to_dict() for recipe in listed])
        return
    from rich.table import Table

    table = Table("recipe", "target", "precision", "graph form", "why", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for recipe in listed:
        target, form = recipe.execution_provider, recipe.graph.operators
        table.add_row(f"[bold]{recipe.name}", target, _precision(recipe), form, recipe.summary)
    with stdout_console() as console:
        console.print(table)


app.command()(generate)
app.command()(batch)
app.command()(embed)
app.command()(classify)
app.command()(tag)


@app.command()
def inspect(
    out: Out,
    provider: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Show who runs each node: cpu, cuda, webgpu, qnn, coreml.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show graphs, files, and where every byte is.

    Reads the manifest alone; verify reads the files. With --provider: which nodes that execution provider takes.
    """
    import helium_onnx

    info = helium_onnx.inspect(out, provider=provider)
    if as_json:
        print_json(info)
        return
    from helium_onnx import inspection

    with stdout_console() as console:
        inspection.render(info, console)


@app.command()
def verify(out: Out, as_json: Json = False, quiet: Quiet = False) -> None:
    """Check a bundle: files, digests, a forward pass.

    From the manifest to one forward pass of every graph; the first check that fails ends the list. Exit code 1 then.
    """
    import helium_onnx

    with progress_display(quiet=quiet) as progress:
        checks = helium_onnx.verify(out, progress=progress)
    if as_json:
        print_json([{"name": check.name, "ok": check.ok, "detail": check.detail} for check in checks])
    else:
        from rich.table import Table
        from rich.text import Text

        good, bad = marks()
        table = Table.grid(padding=(0, 2, 0, 0))
        for check in checks:
            mark = Text(good, style="green") if check.ok else Text(bad, style="bold red")
            table.add_row(mark, check.name, Text(visible(check.detail), style="dim" if check.ok else ""))
        with stdout_console() as console:
            console.print(table)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


app.command()(validate)
app.command()(compare)
app.command()(overflow)
app.command()(bench)
app.command()(package)
app.command()(convert_adapter)
app.command()(doctor)


def _precision(recipe: Recipe) -> str:
    """``float32``, ``int4``, or ``int4, head int8`` where one kind of matrix differs from the linear layers."""
    settings = recipe.quantization

    def name(kind: MatrixSettings) -> str:
        return f"int{kind.bits}" if kind.quantized else recipe.precision.compute

    first = name(settings.linear)
    others = [("head", name(settings.head)), ("embedding", name(settings.embedding))]
    return ", ".join([first, *(f"{kind} {other}" for kind, other in others if other != first)])


def main() -> None:
    """The program ``helium-onnx``."""
    if sys.stdout is not None and hasattr(sys.stdout, "reconfigure"):
        # Paths that are no Unicode come out as they came in; what another encoding lacks becomes a question mark.
        utf8 = sys.stdout.encoding.lower().replace("-", "") == "utf8"
        sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "replace")
    try:
        app(prog_name="helium-onnx")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except (Exception, KeyboardInterrupt) as error:  # outside of a command: typer's own
        code = show_error(error)
    else:
        code = 0
    code = finish_output() or code
    if code > 128:
        if sys.stderr is not None:
            sys.stderr.flush()
        os._exit(code)  # ends without waiting for the runtime's threads
    sys.exit(code)
