"""helium-onnx generate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from helium_onnx.cli_options import Cache, CacheDir, Kernels, Out, Provider, Quiet, Threads
from helium_onnx.errors import UsageError
from helium_onnx.interrupts import interrupts
from helium_onnx.sizes import parse_size
from helium_onnx.terminal import is_terminal, progress_display
from helium_onnx.terminal_output import print_json
from helium_onnx.terminal_text import TextWriter, read_prompts

if TYPE_CHECKING:
    from helium_onnx.generation.result import GenerationResult


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
    speculation: Annotated[
        str, typer.Option(metavar="auto|off|prompt-lookup", help="Draft tokens from the text's own repetitions.")
    ] = "auto",
    adapter: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="Use this LoRA adapter.", show_default=False)
    ] = None,
    draft: Annotated[
        Path | None, typer.Option(metavar="OUT2", help="Let this faster bundle draft.", show_default=False)
    ] = None,
    stream: Annotated[
        bool | None,
        typer.Option("--stream/--no-stream", help="Show text as it comes.", show_default="on without --json"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print texts, token ids and timings as JSON.")] = False,
    provider: Provider = "auto",
    context: Annotated[
        int | None,
        typer.Option(metavar="N", help="Most tokens of prompt and text; bounds memory.", show_default="the model's"),
    ] = None,
    threads: Threads = None,
    kernels: Kernels = "auto",
    spin: Annotated[
        bool, typer.Option("--spin/--no-spin", help="Let threads wait busily: faster; --no-spin saves a battery.")
    ] = True,
    cache: Cache = None,
    cache_dir: CacheDir = None,
    prefix_cache: Annotated[
        int,
        typer.Option(
            metavar="SIZE", parser=parse_size, help="Memory for what prompts share; 0: none.", show_default="512MB"
        ),
    ] = 512_000_000,
    session: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep the work on prompt and text for next time.", show_default=False),
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
    if session is not None:
        _check_session(session, prefix_cache)
    texts = read_prompts(prompts or [])
    from helium_onnx.generation.request import checked_speculation
    from helium_onnx.generation.sampling import SamplingOptions

    # A wrong value shows now, not after a load that may take a minute.
    SamplingOptions(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    choice = checked_speculation(speculation)
    from helium_onnx.runtimes.opening import checked_choice

    chosen_kernels = checked_choice(kernels)
    if adapter is not None:
        from helium_onnx.adapters.bundle_adapters import BundleAdapters
        from helium_onnx.bundle import Bundle

        BundleAdapters(Bundle.open(out)).get(adapter)
    writer = None if as_json else TextWriter(texts, stream=stream is not False)
    with interrupts(second="quits") as interrupt:
        with progress_display(quiet=quiet) as progress:
            model = helium_onnx.load(
                out,
                task="text-generation",
                provider=provider,
                context_length=context,
                threads=threads,
                kernels=chosen_kernels,
                spin=spin,
                cache=cache,
                cache_dir=cache_dir,
                # What a single prompt leaves, nobody would read.
                prefix_cache=prefix_cache if len(texts) > 1 or session is not None else 0,
                draft=draft,
                progress=progress,
            )
        if session is not None and session.exists():
            model.load_session(session, adapter=adapter)
        try:
            result = model.generate(
                texts,
                adapter=adapter,
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
                speculation=choice,
            )
        finally:
            if writer is not None:
                writer.finish()
        if session is not None:
            model.save_session(session, adapter=adapter)
    if as_json:
        print_json(result.to_dict())
    if stats or (stats is None and not quiet and is_terminal(sys.stderr)):
        _print_statistics(result)
    if interrupt.signal is not None:
        raise typer.Exit(128 + interrupt.signal)


def _check_session(session: Path, prefix_cache: int) -> None:
    """Tell before the work, not after it, that it cannot be kept."""
    if prefix_cache == 0:
        raise UsageError("--session keeps what the prefix cache holds", remedy="leave out --prefix-cache 0")
    if not session.parent.is_dir():
        raise UsageError(f"there is no folder {session.parent}", remedy="make it, or choose another file")


def _print_statistics(result: GenerationResult) -> None:
    timings, rows = result.timings, result.generations
    facts = [f"{sum(len(row.token_ids) for row in rows)} tokens"]
    if timings.decode_tokens_per_second:
        facts.append(f"{timings.decode_tokens_per_second:.1f} tokens/s")
    facts.append(f"first token {timings.time_to_first_token_seconds:.2f} s")
    if cached := sum(row.cached_tokens for row in rows):
        facts.append(f"{cached} of {sum(row.prompt_tokens for row in rows)} prompt tokens from the cache")
    if (drafts := result.speculation) is not None and drafts.drafted:
        facts.append(f"{drafts.tokens_per_step:.2f} tokens a step ({drafts.accepted} of {drafts.drafted} drafted)")
    facts.append(f"finish reason {', '.join(row.finish_reason for row in rows)}")
    if rows[0].seed is not None:
        facts.append(f"seed {rows[0].seed}")
    if sys.stderr is not None:
        from rich.console import Console

        console = Console(stderr=True)
        console.print(", ".join(facts), style="dim", highlight=False, soft_wrap=True)
