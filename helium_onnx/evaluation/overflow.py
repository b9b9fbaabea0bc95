"""Does a checkpoint fit float16? Its largest activations beside 65504, the largest number that float16 has.

A recipe of float16 activations (``cuda-fp16``, ``cuda-int4``) turns what is larger into infinity, and the text into
noise, silently. bfloat16 has float32's range, and is the remedy.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from helium_onnx.checkpoint import Checkpoint
from helium_onnx.errors import UsageError
from helium_onnx.evaluation.activations import LAYER_PLACES, Peak, largest_activations
from helium_onnx.exporter import read_tokenizer
from helium_onnx.exporter.calibration import LEAST_TOKENS, load_calibration
from helium_onnx.hub import resolve_checkpoint
from helium_onnx.progress import ProgressCallback, silent

if TYPE_CHECKING:
    from rich.console import Console

Verdict: TypeAlias = Literal["safe", "close", "overflows"]

#: The largest finite float16; what is larger becomes infinity.
LIMIT = 65504.0
#: Below this share of LIMIT a place is safe: other texts may have larger activations than the calibration text.
SAFE_SHARE = 1 / 4
REMEDY = "use the recipe cuda-bf16: bfloat16 has the range of float32"
_WORDS: dict[Verdict, str] = {
    "safe": "safe: every activation is below a quarter of float16's largest number",
    "close": "close: activations come within a factor of 4 of float16's largest number",
    "overflows": "OVERFLOWS: activations exceed float16's largest number",
}


@dataclass(frozen=True)
class OverflowReport:
    """The largest activation at every place of a model, in the order of the computation (``peaks``).

    ``text`` and ``tokens`` say what the model was shown: the figures are those of this text, and no bound.
    """

    checkpoint: str
    text: str
    tokens: int
    peaks: tuple[Peak, ...]

    @property
    def worst(self) -> Peak:
        """The largest of all."""
        return max(self.peaks, key=lambda peak: peak.largest)

    @property
    def verdict(self) -> Verdict:
        return verdict(self.worst.largest)

    @property
    def passed(self) -> bool:
        """Nothing overflowed on this text."""
        return self.verdict != "overflows"

    def to_dict(self) -> dict[str, Any]:
        """All of it for JSON; an activation that is not finite is null."""

        def row(peak: Peak) -> dict[str, Any]:
            finite = math.isfinite(peak.largest)
            return {
                "layer": peak.layer,
                "place": peak.place,
                "largest": peak.largest if finite else None,
                "share": share(peak) if finite else None,
                "verdict": verdict(peak.largest),
            }

        return {
            "checkpoint": self.checkpoint,
            "text": self.text,
            "tokens": self.tokens,
            "limit": LIMIT,
            "verdict": self.verdict,
            "remedy": None if self.verdict == "safe" else REMEDY,
            "worst": row(self.worst),
            "peaks": [row(peak) for peak in self.peaks],
        }

    def render(self, console: Console) -> None:
        """Print a table by layer, one by place, and the verdict."""
        from rich.text import Text

        console.print(Text(f"{self.checkpoint} in float16: {self.tokens:,} tokens of {self.text}"))
        console.print(_table("The largest activation of each layer", _by_layer(self)))
        console.print(_table("The same of each place, over all layers", _by_place(self)))
        style = {"safe": "green", "close": "yellow", "overflows": "bold red"}[self.verdict]
        words = f"{_WORDS[self.verdict]} ({percent(self.worst)} of it at {where(self.worst)})"
        console.print()
        console.print(Text(words if self.verdict == "safe" else f"{words}; {REMEDY}", style=style))


def overflow(
    checkpoint: str | os.PathLike[str],
    *,
    text: str | os.PathLike[str] | None = None,
    tokens: int | None = None,
    progress: ProgressCallback | None = None,
) -> OverflowReport:
    """See :func:`helium_onnx.overflow`."""
    if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < LEAST_TOKENS):
        raise UsageError("tokens is out of range", found=repr(tokens), expected=f"an integer from {LEAST_TOKENS}")
    source = Checkpoint.open(resolve_checkpoint(checkpoint))
    source.check_tensors(source.config)
    shown = load_calibration(text, read_tokenizer(source), source.config, tokens=tokens or 0)
    peaks = largest_activations(source, [window.tolist() for window in shown.windows], progress or silent)
    return OverflowReport(os.fspath(checkpoint), shown.file, shown.tokens, peaks)


def verdict(largest: float) -> Verdict:
    """Of one largest |activation|."""
    if largest > LIMIT:
        return "overflows"
    return "safe" if largest < SAFE_SHARE * LIMIT else "close"


def share(peak: Peak) -> float:
    """Of float16's range; above 1 overflows."""
    return peak.largest / LIMIT


def percent(peak: Peak) -> str:
    """``0.031 %``, ``12 %``, ``240 %``; ``not finite``."""
    if not math.isfinite(peak.largest):
        return "not finite"
    return f"{100 * share(peak):.2g} %" if share(peak) < 1 else f"{100 * share(peak):.0f} %"


def where(peak: Peak) -> str:
    """``layer 3, down_proj``; a place outside the layers by itself."""
    return peak.place if peak.layer is None else f"layer {peak.layer}, {peak.place}"


def _by_layer(report: OverflowReport) -> list[tuple[str, str, Peak]]:
    """Each layer's largest, between the embedding and the head."""
    rows: list[tuple[str, str, Peak]] = []
    layers: dict[int, Peak] = {}
    for peak in report.peaks:
        if peak.layer is not None and (peak.layer not in layers or peak.largest > layers[peak.layer].largest):
            layers[peak.layer] = peak
    outside = [peak for peak in report.peaks if peak.layer is None]
    before, after = outside[:1], outside[1:]
    rows += [("", peak.place, peak) for peak in before]
    rows += [(str(layer), peak.place, peak) for layer, peak in sorted(layers.items())]
    return rows + [("", peak.place, peak) for peak in after]


def _by_place(report: OverflowReport) -> list[tuple[str, str, Peak]]:
    """Each place's largest, over the layers."""
    rows = []
    for place in LAYER_PLACES:
        peak = max((p for p in report.peaks if p.place == place), key=lambda p: p.largest)
        rows.append((str(peak.layer), place, peak))
    return rows


def _table(title: str, rows: list[tuple[str, str, Peak]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"\n{title}"), title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("layer", justify="right")
    table.add_column("place")
    for column in ("largest", "of 65504"):
        table.add_column(column, justify="right")
    styles = {"safe": "", "close": "yellow", "overflows": "bold red"}
    for layer, place, peak in rows:
        style = styles[verdict(peak.largest)]
        table.add_row(layer, Text(place), f"{peak.largest:.4g}", percent(peak), style=style)
    return table
