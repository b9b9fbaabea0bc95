"""helium-onnx embed, classify, tag: one pass over each text, JSON Lines out."""

# ruff: noqa: ARG001  the options that the three share are read from the context

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from helium_onnx.cli_batch import (
    BadRows,
    BatchTokens,
    Context,
    DropText,
    Field,
    Force,
    Lines,
    Resume,
    Truncate,
    resumable,
    show_report,
)
from helium_onnx.cli_options import Cache, CacheDir, Json, Kernels, Out, Provider, Quiet, Threads
from helium_onnx.errors import UsageError
from helium_onnx.terminal import progress_display

if TYPE_CHECKING:
    from helium_onnx.batching.rows import Input

Texts = Annotated[
    list[str] | None,
    typer.Argument(metavar="TEXT", help="Without one, or for -, each line of stdin is a text.", show_default=False),
]
InputFile = Annotated[
    str | None, typer.Option("--input", "-i", metavar="FILE", help="JSON Lines; - is stdin.", show_default=False)
]
OutputFile = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="A new file.", show_default="stdout")
]


def embed(
    ctx: typer.Context,
    out: Out,
    texts: Texts = None,
    input: InputFile = None,
    output: OutputFile = None,
    pooling: Annotated[
        str, typer.Option(metavar="mean|last|none", help="Of all tokens, of the last, or each one's.")
    ] = "mean",
    normalize: Annotated[bool, typer.Option("--normalize/--no-normalize", help="To length 1.")] = True,
    field: Field = "text",
    lines: Lines = False,
    resume: Resume = False,
    force: Force = False,
    bad_rows: BadRows = "stop",
    drop_text: DropText = False,
    truncate: Truncate = False,
    batch_tokens: BatchTokens = None,
    provider: Provider = "auto",
    context: Context = None,
    threads: Threads = None,
    kernels: Kernels = "auto",
    cache: Cache = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn texts into vectors.

    JSON Lines out. The bundle is one for feature-extraction.
    """
    _encode("feature-extraction", {"pooling": pooling, "normalize": normalize}, ctx.params)


def classify(
    ctx: typer.Context,
    out: Out,
    texts: Texts = None,
    input: InputFile = None,
    output: OutputFile = None,
    top_k: Annotated[int, typer.Option(metavar="K", min=1, help="Labels, the likeliest first.")] = 1,
    field: Field = "text",
    lines: Lines = False,
    resume: Resume = False,
    force: Force = False,
    bad_rows: BadRows = "stop",
    drop_text: DropText = False,
    truncate: Truncate = False,
    batch_tokens: BatchTokens = None,
    provider: Provider = "auto",
    context: Context = None,
    threads: Threads = None,
    kernels: Kernels = "auto",
    cache: Cache = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Label texts.

    JSON Lines out. The bundle is one for text-classification.
    """
    _encode("text-classification", {"top_k": top_k}, ctx.params)


def tag(
    ctx: typer.Context,
    out: Out,
    texts: Texts = None,
    input: InputFile = None,
    output: OutputFile = None,
    aggregation: Annotated[
        str, typer.Option(metavar="NAME", help="How tokens become entities: simple, none, first, average, max.")
    ] = "simple",
    field: Field = "text",
    lines: Lines = False,
    resume: Resume = False,
    force: Force = False,
    bad_rows: BadRows = "stop",
    drop_text: DropText = False,
    truncate: Truncate = False,
    batch_tokens: BatchTokens = None,
    provider: Provider = "auto",
    context: Context = None,
    threads: Threads = None,
    kernels: Kernels = "auto",
    cache: Cache = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find entities in texts.

    JSON Lines out. The bundle is one for token-classification.
    """
    _encode("token-classification", {"aggregation": aggregation}, ctx.params)


def _encode(task: str, options: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """``given`` are the options that the three commands share."""
    from helium_onnx.batching import run
    from helium_onnx.runtimes.opening import checked_choice

    output: Path | None = given["output"]
    if output is None and (given["resume"] or given["force"] or given["as_json"]):
        raise UsageError("--resume, --force and --json are about a file", remedy="add --output FILE")
    source, lines = _source(given)
    settings = {
        name: given[name]
        for name in ("field", "bad_rows", "drop_text", "batch_tokens", "provider", "threads", "cache", "cache_dir")
    }
    settings |= {
        "lines": lines,
        "context_length": given["context"],
        "kernels": checked_choice(given["kernels"]),
    }
    with source as rows, resumable(output), progress_display(quiet=given["quiet"]) as progress:
        work, counter = run.prepare(
            given["out"], task=task, options={**options, "truncate": given["truncate"]}, **settings
        )
        if output is None:
            run.run_through(rows, _Stdout(), work, counter, progress=progress)
            return
        report = run.run_job(
            rows,
            output,
            work,
            counter,
            ordered=True,
            resume=given["resume"],
            force=given["force"],
            workers=None,
            progress=progress,
        )
    show_report(report, output, as_json=given["as_json"])


def _source(given: Mapping[str, Any]) -> tuple[AbstractContextManager[Input], bool]:
    """Where the rows come from, and whether each of its lines is a text."""
    from helium_onnx.batching.spool import spooled, spooled_texts

    texts: list[str] = given["texts"] or []
    if given["input"] is not None:
        if texts:
            raise UsageError("texts and --input exclude each other", remedy="leave one of them out")
        return spooled(given["input"]), given["lines"]
    if given["lines"]:
        raise UsageError("--lines is about --input", remedy="leave it out: lines of stdin are texts")
    if texts in ([], ["-"]):
        return spooled("-"), True
    if "-" in texts:
        raise UsageError("stdin cannot be read among other texts", remedy="give texts, or - alone")
    return spooled_texts(texts), False


class _Stdout:
    """Rows as they are ready; who reads them need not wait for the end."""

    def write(self, rows: Iterable[bytes]) -> None:
        sys.stdout.buffer.write(b"".join(rows))
        sys.stdout.buffer.flush()
