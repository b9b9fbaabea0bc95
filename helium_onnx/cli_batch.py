"""helium-onnx batch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from helium_onnx.cli_options import Cache, CacheDir, Json, Kernels, Out, Provider, Quiet, Threads
from helium_onnx.interrupts import interrupts
from helium_onnx.terminal import duration, progress_display, say
from helium_onnx.terminal_output import print_json

if TYPE_CHECKING:
    from helium_onnx.batching.report import BatchReport

Field = Annotated[str, typer.Option(metavar="NAME", help="The field that holds a row's text.")]
Lines = Annotated[bool, typer.Option("--lines", help="Each line is a text, no JSON.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an output that was begun.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace the output.")]
BadRows = Annotated[
    str, typer.Option(metavar="stop|report", help="A row that cannot be used: an error, or an output row with error.")
]
DropText = Annotated[bool, typer.Option("--drop-text", help="Leave the texts out of the output.")]
Truncate = Annotated[bool, typer.Option("--truncate", help="Cut texts that do not fit the context.")]
BatchTokens = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Tokens that run together at most.", show_default="by the task"),
]
Context = Annotated[
    int | None, typer.Option(metavar="N", help="Most tokens of a row; bounds memory.", show_default="the model's")
]


def batch(
    out: Out,
    input: Annotated[str, typer.Argument(metavar="INPUT", help="JSON Lines; - is stdin.", show_default=False)],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The new file.", show_default=False)],
    task: Annotated[str, typer.Option(metavar="TASK", help="What the bundle is to be for; auto: what it is for.")] = (
        "auto"
    ),
    field: Field = "text",
    lines: Lines = False,
    resume: Resume = False,
    force: Force = False,
    ordered: Annotated[
        bool, typer.Option("--ordered/--unordered", help="In the input's order, or as rows come, with their line.")
    ] = True,
    bad_rows: BadRows = "stop",
    drop_text: DropText = False,
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Generation: tokens at most.", show_default="128")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="T", help="Generation: 0 is greedy.", show_default="0")
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            metavar="K", help="Generation: of the K likeliest tokens. Classification: K labels.", show_default="0; 1"
        ),
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(metavar="P", help="Generation: of tokens that add up to P.", show_default="1")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(metavar="P", help="Generation: none below P times the likeliest.", show_default="0")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(metavar="X", help="Generation: above 1, against repetition.", show_default="1")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Generation: repeat sampled texts.", show_default="random")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Generation: end before it.", show_default=False)
    ] = None,
    parse_special: Annotated[
        bool | None, typer.Option("--parse-special", help="Generation: </s> in a text is a control token.")
    ] = None,
    ignore_eos: Annotated[bool | None, typer.Option("--ignore-eos", help="Generation: go on after eos.")] = None,
    pooling: Annotated[
        str | None, typer.Option(metavar="mean|last|none", help="Embedding: of which tokens.", show_default="mean")
    ] = None,
    normalize: Annotated[
        bool | None, typer.Option("--normalize/--no-normalize", help="Embedding: to length 1.", show_default="on")
    ] = None,
    aggregation: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Tagging: simple, none, first, average, max.", show_default="simple"),
    ] = None,
    truncate: Annotated[
        bool | None, typer.Option("--truncate", help="All but generation: cut texts to the context.")
    ] = None,
    batch_tokens: BatchTokens = None,
    provider: Provider = "auto",
    context: Context = None,
    threads: Threads = None,
    kernels: Kernels = "auto",
    cache: Cache = None,
    cache_dir: CacheDir = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="auto|ADDRESS", help="Work on a Ray cluster; auto: this machine's.", show_default=False),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="With --ray: processes.", show_default="all CPUs")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Work through a file of texts, each row once.

    An output row is the input row and the result. Whatever ends the command, --resume goes on.
    """
    import helium_onnx
    from helium_onnx.runtimes.opening import checked_choice

    chosen_kernels = checked_choice(kernels)
    with resumable(output), progress_display(quiet=quiet) as progress, redirect_stdout(sys.stderr):
        # Ray prints to stdout what becomes of its workers.
        report = helium_onnx.batch(
            out,
            input,
            output,
            task=task,
            field=field,
            lines=lines,
            ordered=ordered,
            resume=resume,
            force=force,
            bad_rows=cast(Literal["stop", "report"], bad_rows),
            drop_text=drop_text,
            batch_tokens=batch_tokens,
            provider=provider,
            context_length=context,
            threads=threads,
            kernels=chosen_kernels,
            cache=cache,
            cache_dir=cache_dir,
            ray=ray,
            workers=workers,
            progress=progress,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=stop,
            parse_special=parse_special,
            ignore_eos=ignore_eos,
            pooling=pooling,
            normalize=normalize,
            aggregation=aggregation,
            truncate=truncate,
        )
    show_report(report, output, as_json=as_json)


@contextmanager
def resumable(output: Path | None) -> Iterator[Any]:
    """Answer signals, and say after one that nothing is lost."""
    from helium_onnx.batching.job import job_path

    with interrupts(second="quits") as interrupt:
        try:
            yield interrupt
        except KeyboardInterrupt:
            if output is not None and output.exists() and job_path(output).exists():
                say(f"{output} holds whole rows; the same command with --resume goes on")
            interrupt.check()  # the signal's own number, where a library raised another interruption
            raise


def show_report(report: BatchReport, output: Path, *, as_json: bool) -> None:
    """One line about a job that has finished."""
    if as_json:
        print_json(report.to_dict())
        return
    facts = [f"{report.rows} rows"]
    if report.new_rows < report.rows:
        facts.append(f"{report.new_rows} of them new")
    if report.bad_rows:
        facts.append(f"{report.bad_rows} with an error")
    pace = f" ({report.new_rows / report.seconds:.3g} rows/s)" if report.new_rows and report.seconds else ""
    print(f"{output}: {', '.join(facts)}, in {duration(report.seconds)}{pace}")
    sys.stdout.flush()
