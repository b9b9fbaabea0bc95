"""The command line: one command = one public function, flags = its keywords. No framework is loaded to show help.

Results go to stdout, everything else (progress, statistics, errors) to stderr. Exit codes: 0; 1 for an error or a
check that failed; 2 for a wrong use; 128 + n after signal n (130 after Ctrl-C).
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from helium_onnx.errors import HeliumOnnxError, UsageError
from helium_onnx.interrupts import interrupts
from helium_onnx.progress import ProgressEvent
from helium_onnx.terminal import (
    duration,
    finish_output,
    is_terminal,
    progress_display,
    show_error,
    size,
    visible,
)
from helium_onnx.terminal_text import TextWriter, read_prompts

if TYPE_CHECKING:
    from rich.console import Console

    from helium_onnx.evaluation.gates import Gates
    from helium_onnx.evaluation.report import FidelityComparison, FidelityReport
    from helium_onnx.generation.result import GenerationResult
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

Out = Annotated[Path, typer.Argument(metavar="OUT", help="The bundle's folder.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


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
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace the bundle at OUT.")] = False,
    revision: Annotated[
        str | None,
        typer.Option(metavar="REV", help="Branch, tag or commit on the Hub.", show_default="main"),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use the Hub's cache alone, no network.")] = False,
    quiet: Quiet = False,
) -> None:
    """Turn a checkpoint into a bundle.

    The bundle is complete or absent, whatever happens. Needs pip install 'helium-onnx[export]'.
    """
    import helium_onnx

    started = time.monotonic()
    with interrupts(second="ignored") as interrupt, progress_display(quiet=quiet, keep=True) as progress:

        def report(event: ProgressEvent) -> None:
            interrupt.check()
            progress(event)

        report(ProgressEvent("start", "loading PyTorch"))
        bundle = helium_onnx.export(
            checkpoint,
            out,
            recipe=recipe,
            calibration=calibration,
            budget=budget,
            max_kl=max_kl,
            force=force,
            revision=revision,
            offline=offline,
            progress=report,
        )
    allocation = bundle.manifest.quantization.get("allocation")
    if allocation is not None and not quiet:
        from helium_onnx import allocation_table

        with _console() as console:
            allocation_table.render(allocation, console)
    name = _quoted(out)
    print(
        f"{out}: {size(bundle.total_bytes)} in {duration(time.monotonic() - started)}."
        f' Next: helium-onnx generate {name} "Your text"'
    )


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the recipes: target, precision, graph form, why."""
    import helium_onnx

    listed = helium_onnx.list_recipes()
    if as_json:
        _print_json([recipe.to_dict() for recipe in listed])
        return
    from rich.table import Table

    table = Table("recipe", "target", "precision", "graph form", "why", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for recipe in listed:
        target, form = recipe.execution_provider, recipe.graph.operators
        table.add_row(f"[bold]{recipe.name}", target, _precision(recipe), form, recipe.summary)
    with _console() as console:
        console.print(table)


@app.command()
def generate(
    out: Out,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT",
            help="Text to continue; several make a batch. Without one, or for -, stdin is read.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens to generate at most.")] = 128,
    temperature: Annotated[float, typer.Option(metavar="T", help="0 is greedy; 1 the model's own distribution.")] = 0.0,
    top_k: Annotated[int, typer.Option(metavar="K", help="Sample from the K likeliest tokens; 0: from all.")] = 0,
    top_p: Annotated[
        float, typer.Option(metavar="P", help="Sample from the likeliest tokens that add up to probability P.")
    ] = 1.0,
    min_p: Annotated[float, typer.Option(metavar="P", help="Drop tokens below P times the largest probability.")] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(metavar="X", help="Above 1, tokens that have occurred get less likely.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Repeat a sampled text.", show_default="random")] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="End before this text; may be given again.", show_default=False),
    ] = None,
    logprobs: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, help="With --json: log-probabilities, of N alternatives too.", show_default=False
        ),
    ] = None,
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="Let </s> and the like in PROMPT be control tokens.")
    ] = False,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after the eos token.")] = False,
    stream: Annotated[
        bool | None,
        typer.Option("--stream/--no-stream", help="Show text as it comes.", show_default="on without --json"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print texts, token ids and timings as JSON.")] = False,
    provider: Annotated[str, typer.Option(metavar="NAME", help="Execution provider.")] = "cpu",
    context: Annotated[
        int | None,
        typer.Option(metavar="N", help="Most tokens of prompt and text; bounds memory.", show_default="the model's"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="CPU threads.", show_default="physical cores")
    ] = None,
    cache: Annotated[
        bool | None,
        typer.Option(
            "--cache/--no-cache", help="Keep prepacked weights on disk.", show_default="from 64 MB of weights"
        ),
    ] = None,
    cache_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to.", show_default="~/.cache/helium-onnx")
    ] = None,
    stats: Annotated[
        bool | None,
        typer.Option(
            "--stats/--no-stats", help="Print speed and finish reason to stderr.", show_default="on a terminal"
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Continue text.

    Only the continuation goes to stdout. Ctrl-C ends it early and keeps what there is.
    """
    import helium_onnx

    if as_json and stream:
        raise UsageError("--stream and --json exclude each other", remedy="leave one of them out")
    if logprobs is not None and not as_json:
        raise UsageError("--logprobs shows nothing in plain text", remedy="add --json")
    texts = read_prompts(prompts or [])
    from helium_onnx.generation.sampling import SamplingOptions

    # A wrong value shows now, not after a load that may take a minute.
    SamplingOptions(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    writer = None if as_json else TextWriter(texts, stream=stream is not False)
    with interrupts(second="quits") as interrupt:
        with progress_display(quiet=quiet) as progress:
            model = helium_onnx.load(
                out,
                provider=provider,
                context_length=context,
                threads=threads,
                cache=cache,
                cache_dir=cache_dir,
                progress=progress,
            )
        try:
            result = model.generate(
                texts,
                on_text=None if writer is None else writer.write,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                repetition_penalty=repetition_penalty,
                seed=seed,
                stop=stop or (),
                logprobs=logprobs,
                parse_special=parse_special,
                ignore_eos=ignore_eos,
            )
        finally:
            if writer is not None:
                writer.finish()
    if as_json:
        _print_json(result.to_dict())
    if stats or (stats is None and not quiet and is_terminal(sys.stderr)):
        _print_statistics(result)
    if interrupt.signal is not None:
        raise typer.Exit(128 + interrupt.signal)


@app.command()
def inspect(out: Out, as_json: Json = False) -> None:
    """Show graphs, files, and where every byte is.

    Reads the manifest alone; verify reads the files.
    """
    import helium_onnx

    info = helium_onnx.inspect(out)
    if as_json:
        _print_json(info)
        return
    from helium_onnx import inspection

    with _console() as console:
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
        _print_json([{"name": check.name, "ok": check.ok, "detail": check.detail} for check in checks])
    else:
        from rich.table import Table
        from rich.text import Text

        good, bad = _marks()
        table = Table.grid(padding=(0, 2, 0, 0))
        for check in checks:
            mark = Text(good, style="green") if check.ok else Text(bad, style="bold red")
            table.add_row(mark, check.name, Text(visible(check.detail), style="dim" if check.ok else ""))
        with _console() as console:
            console.print(table)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


Against = Annotated[str | None, typer.Option(metavar="CHECKPOINT", help="What OUT was made from.", show_default=False)]
Texts = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Measure on it; JSON Lines with text, lang.", show_default=False)
]
Limit = Annotated[int, typer.Option(metavar="N", min=0, help="Texts that are measured, from the first; 0: all.")]
MaxTokens = Annotated[
    int | None,
    typer.Option(metavar="N", min=2, help="Tokens of a text, from its first.", show_default="1024, or the context"),
]
Html = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with charts.", show_default=False)]
MaxKl = Annotated[
    float | None, typer.Option(metavar="NATS", help="Fail above this mean KL divergence.", show_default=False)
]
MinTop1 = Annotated[
    str | None, typer.Option(metavar="RATE", help="Fail below this rate, as 0.9 or 90%.", show_default=False)
]
MaxPplRatio = Annotated[
    float | None, typer.Option(metavar="X", help="Fail above this ratio of perplexities.", show_default=False)
]


@app.command()
def validate(
    ctx: typer.Context,
    out: Out,
    against: Against = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompt", metavar="TEXT", help="May be given again.", show_default="some of our own"),
    ] = None,
    text: Texts = None,
    golden: Annotated[bool, typer.Option("--golden", help="Compare with published logits of the preview.")] = False,
    limit: Limit = 100,
    max_tokens: MaxTokens = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens to compare for each prompt.")] = 64,
    max_kl: MaxKl = None,
    min_top1: MinTop1 = None,
    max_ppl_ratio: MaxPplRatio = None,
    html: Html = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare a bundle with its checkpoint.

    Logits and greedy tokens beside transformers; with --text, perplexity, KL divergence and more on that text. Exit
    code 1 if they differ by more than the precision explains, or a bar is not reached. Needs pip install
    'helium-onnx[eval]'.
    """
    import helium_onnx

    given = _given(ctx)
    if golden and (wrong := given - {"out", "golden", "as_json", "quiet"}):
        raise UsageError(f"--golden takes no {_option(wrong)}", remedy="leave one of them out")
    if not golden and against is None:
        raise UsageError("option --against is missing", expected="the checkpoint, a folder or a Hub id")
    if text is not None:
        if prompts:
            raise UsageError("--prompt and --text exclude each other", remedy="leave one of them out")
        from helium_onnx.evaluation.gates import Gates, parse_rate

        gates = Gates(max_kl, None if min_top1 is None else parse_rate(min_top1), max_ppl_ratio)
        _check_page(html)
        with interrupts(second="quits"), progress_display(quiet=quiet) as progress:
            fidelity = helium_onnx.validate(
                out, against=str(against), text=text, limit=limit or None, max_tokens=max_tokens,
                max_new_tokens=max_new_tokens, progress=progress,
            )  # fmt: skip
        _show_fidelity(fidelity, gates, html, as_json)
        return
    if wrong := given & {"limit", "max_tokens", "max_kl", "min_top1", "max_ppl_ratio", "html"}:
        raise UsageError(f"{_option(wrong)} says nothing without --text", remedy="give a text with --text")
    with progress_display(quiet=quiet) as progress:
        report = (
            helium_onnx.validate(out, golden=True, progress=progress)
            if golden
            else helium_onnx.validate(
                out, against=str(against), prompts=prompts or None, max_new_tokens=max_new_tokens, progress=progress
            )
        )
    if as_json:
        _print_json(report.to_dict())
    else:
        with _console() as console:
            report.render(console)
    if not report.passed:
        raise typer.Exit(1)


@app.command()
def compare(
    outs: Annotated[list[Path], typer.Argument(metavar="OUT...", help="The bundles' folders.", show_default=False)],
    against: Annotated[str, typer.Option(metavar="CHECKPOINT", help="What they were made from.", show_default=False)],
    text: Annotated[
        Path, typer.Option(metavar="FILE", help="Measure on it; JSON Lines with text, lang.", show_default=False)
    ],
    limit: Limit = 100,
    max_tokens: MaxTokens = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens of a greedy text.")] = 64,
    max_kl: MaxKl = None,
    min_top1: MinTop1 = None,
    max_ppl_ratio: MaxPplRatio = None,
    html: Html = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare several bundles on one text.

    What validate --text measures, side by side: size against loss. Exit code 1 if a bundle misses a bar. Needs pip
    install 'helium-onnx[eval]'.
    """
    import helium_onnx
    from helium_onnx.evaluation.gates import Gates, parse_rate

    gates = Gates(max_kl, None if min_top1 is None else parse_rate(min_top1), max_ppl_ratio)
    _check_page(html)
    with interrupts(second="quits"), progress_display(quiet=quiet) as progress:
        comparison = helium_onnx.compare(
            outs, against=against, text=text, limit=limit or None, max_tokens=max_tokens,
            max_new_tokens=max_new_tokens, progress=progress,
        )  # fmt: skip
    _show_fidelity(comparison, gates, html, as_json)


def _given(ctx: typer.Context) -> set[str]:
    """Parameters that stand on the command line, as opposed to defaults."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _option(names: set[str]) -> str:
    """The first of some parameters as it is typed."""
    name = min(names)
    return "--" + {"prompts": "prompt"}.get(name, name).replace("_", "-")


def _check_page(html: Path | None) -> None:
    """Tell before the work, not after it, that the page cannot be made or written."""
    if html is not None:
        from helium_onnx.evaluation.report import check_page

        check_page(html)


def _show_fidelity(report: FidelityReport | FidelityComparison, gates: Gates, html: Path | None, as_json: bool) -> None:
    """Write the page, print the report, and raise where a gate is not passed."""
    if html is not None:
        report.write_html(html, gates)
    if as_json:
        _print_json(report.to_dict(gates))
    else:
        with _console() as console:
            report.render(console)
    if failed := report.failures(gates):
        bars = "a bar is" if len(failed) == 1 else f"{len(failed)} bars are"
        raise HeliumOnnxError(f"{bars} not reached", found="; ".join(map(str, failed)))


def _print_statistics(result: GenerationResult) -> None:
    timings, rows = result.timings, result.generations
    facts = [f"{sum(len(row.token_ids) for row in rows)} tokens"]
    if timings.decode_tokens_per_second:
        facts.append(f"{timings.decode_tokens_per_second:.1f} tokens/s")
    facts.append(f"first token {timings.time_to_first_token_seconds:.2f} s")
    facts.append(f"finish reason {', '.join(row.finish_reason for row in rows)}")
    if rows[0].seed is not None:
        facts.append(f"seed {rows[0].seed}")
    if sys.stderr is not None:
        from rich.console import Console

        console = Console(stderr=True)
        console.print(", ".join(facts), style="dim", highlight=False, soft_wrap=True)


def _precision(recipe: Recipe) -> str:
    """``float32``, ``int4``, or ``int4, head int8`` where one kind of matrix differs from the linear layers."""
    settings = recipe.quantization

    def name(kind: MatrixSettings) -> str:
        return f"int{kind.bits}" if kind.quantized else recipe.precision.compute

    first = name(settings.linear)
    others = [("head", name(settings.head)), ("embedding", name(settings.embedding))]
    return ", ".join([first, *(f"{kind} {other}" for kind, other in others if other != first)])


def _print_json(value: object) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:  # a path that is no Unicode, or a terminal that is not
        text = json.dumps(value, indent=2, allow_nan=False)
    print(text)


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))


@contextmanager
def _console() -> Iterator[Console]:
    """For tables on stdout: as wide as the terminal; elsewhere wide enough that nothing is folded, and not padded."""
    from rich.console import Console

    if is_terminal(sys.stdout):
        yield Console(highlight=False)
        return
    page = Console(file=io.StringIO(), highlight=False, width=240)
    yield page
    for line in page.file.getvalue().splitlines():  # type: ignore[attr-defined]
        print(line.rstrip())


def _marks() -> tuple[str, str]:
    """For a check that passed and one that failed."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return ("✓", "✗") if encoding.lower().startswith("utf") else ("ok", "failed")


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
