"""The commands ``validate``, ``compare`` and ``overflow``: what a bundle lost, or would lose, beside its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from helium_onnx.cli_options import Html, Json, Out, Provider, Quiet
from helium_onnx.errors import HeliumOnnxError, UsageError
from helium_onnx.interrupts import interrupts
from helium_onnx.terminal import progress_display
from helium_onnx.terminal_output import print_json, stdout_console

if TYPE_CHECKING:
    from helium_onnx.evaluation.gates import Gates
    from helium_onnx.evaluation.report import FidelityComparison, FidelityReport

Against = Annotated[str | None, typer.Option(metavar="CHECKPOINT", help="What OUT was made from.", show_default=False)]
Merged = Annotated[
    list[str] | None,
    typer.Option("--adapter", metavar="DIR", help="What export merged; may be given again.", show_default=False),
]
Texts = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Measure on it; JSON Lines with text, lang.", show_default=False)
]
Limit = Annotated[int, typer.Option(metavar="N", min=0, help="Texts that are measured, from the first; 0: all.")]
MaxTokens = Annotated[
    int | None,
    typer.Option(metavar="N", min=2, help="Tokens of a text, from its first.", show_default="1024, or the context"),
]
MaxKl = Annotated[
    float | None, typer.Option(metavar="NATS", help="Fail above this mean KL divergence.", show_default=False)
]
MinTop1 = Annotated[
    str | None, typer.Option(metavar="RATE", help="Fail below this rate, as 0.9 or 90%.", show_default=False)
]
MaxPplRatio = Annotated[
    float | None, typer.Option(metavar="X", help="Fail above this ratio of perplexities.", show_default=False)
]


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
    provider: Provider = "auto",
    adapter: Merged = None,
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
                max_new_tokens=max_new_tokens, provider=provider, adapter=adapter, progress=progress,
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
                out,
                against=str(against),
                prompts=prompts or None,
                max_new_tokens=max_new_tokens,
                provider=provider,
                adapter=adapter,
                progress=progress,
            )
        )
    if as_json:
        print_json(report.to_dict())
    else:
        with stdout_console() as console:
            report.render(console)
    if not report.passed:
        raise typer.Exit(1)


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
    provider: Provider = "auto",
    adapter: Merged = None,
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
            max_new_tokens=max_new_tokens, provider=provider, adapter=adapter, progress=progress,
        )  # fmt: skip
    _show_fidelity(comparison, gates, html, as_json)


def overflow(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="Folder or Hub id of the model.", show_default=False)
    ],
    text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text to run it on, as JSON Lines.", show_default="a shipped text"),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of it.", show_default="by the model's size")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Tell whether a checkpoint fits float16.

    Its largest activations in each layer, in float32, beside the largest float16 number. Exit code 1 if one overflows:
    cuda-bf16 is the recipe then, not cuda-fp16 or cuda-int4. Needs no GPU, but pip install 'helium-onnx[eval]'.
    """
    import helium_onnx

    with interrupts(second="quits"), progress_display(quiet=quiet) as progress:
        report = helium_onnx.overflow(checkpoint, text=text, tokens=tokens, progress=progress)
    if as_json:
        print_json(report.to_dict())
    else:
        with stdout_console() as console:
            report.render(console)
    if not report.passed:
        raise typer.Exit(1)


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
        print_json(report.to_dict(gates))
    else:
        with stdout_console() as console:
            report.render(console)
    if failed := report.failures(gates):
        bars = "a bar is" if len(failed) == 1 else f"{len(failed)} bars are"
        raise HeliumOnnxError(f"{bars} not reached", found="; ".join(map(str, failed)))
