"""A bundle of kyutai/helium-1-preview-2b beside published logits of that model: a check that needs no checkpoint.

The values are those of the PyTorch model in float32 on this prompt: ids, the ten likeliest next tokens with their
logits, and the greedy continuation.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from helium_onnx.bundle import Bundle
from helium_onnx.config import PREVIEW_2B, HeliumConfig
from helium_onnx.errors import UsageError
from helium_onnx.evaluation.device import check_device
from helium_onnx.loading import load_tokenizer
from helium_onnx.progress import ProgressCallback, ProgressEvent, silent
from helium_onnx.runtimes.opening import open_session
from helium_onnx.runtimes.session import Session

if TYPE_CHECKING:
    from rich.console import Console

MODEL = "kyutai/helium-1-preview-2b"
PROMPT = "Once upon a time"
PROMPT_IDS = (1, 4000, 1880, 369, 497)
TOP_IDS = (362, 502, 371, 719, 402, 369, 4667, 365, 377, 364)
TOP_LOGITS = (
    14.3206205, 13.0502253, 12.5199404, 10.8119965, 10.7497206, 10.6506853, 10.2515774, 10.0431232, 9.8208504,
    9.2904510,
)  # fmt: skip
GREEDY_IDS = (
    362, 502, 387, 369, 1394, 7061, 1401, 7825, 364, 812, 387, 369, 666, 12690, 7061, 362, 370, 673, 1272, 3130,
)  # fmt: skip
#: For float32: sums in another order move logits of this size by some 1e-4, the wrong RoPE by more than 1e-1.
TOLERANCE = 2e-3


@dataclass(frozen=True)
class GoldenRow:
    """One of the ten tokens: its id, the published logit and the bundle's."""

    token_id: int
    published: float
    logit: float


@dataclass(frozen=True)
class GoldenReport:
    """What a bundle says beside the published values. ``tolerance`` is None for a recipe that is not judged.

    ``equal_tokens`` of ``len(GREEDY_IDS)`` greedy tokens are the published ones.
    """

    bundle: str
    recipe: str
    tolerance: float | None
    rows: tuple[GoldenRow, ...]
    greedy_ids: tuple[int, ...]

    @property
    def max_abs(self) -> float:
        """Largest |logit - published| of the ten; NaN where a logit is no number."""
        return float(np.max([abs(row.logit - row.published) for row in self.rows]))

    @property
    def equal_tokens(self) -> int:
        pairs = zip(self.greedy_ids, GREEDY_IDS, strict=True)
        return next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), len(GREEDY_IDS))

    @property
    def passed(self) -> bool:
        """float32: every logit within the tolerance and equal tokens. Else: logits are finite."""
        if self.tolerance is None:
            return bool(np.isfinite(self.max_abs))
        return self.max_abs <= self.tolerance and self.equal_tokens == len(GREEDY_IDS)

    def to_dict(self) -> dict[str, Any]:
        """All of it for JSON; a logit that is no finite number is null."""

        def finite(value: float) -> float | None:
            return value if np.isfinite(value) else None

        return {
            "bundle": self.bundle,
            "recipe": self.recipe,
            "model": MODEL,
            "prompt": PROMPT,
            "passed": self.passed,
            "tolerance": self.tolerance,
            "max_abs": finite(self.max_abs),
            "rows": [
                {"token_id": row.token_id, "published": row.published, "logit": finite(row.logit)} for row in self.rows
            ],
            "equal_tokens": self.equal_tokens,
            "greedy_ids": list(self.greedy_ids),
            "published_greedy_ids": list(GREEDY_IDS),
        }

    def render(self, console: Console) -> None:
        """Print the ten logits and the verdict."""
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=Text(f"{self.bundle} ({self.recipe}) beside published values of {MODEL}"),
            title_justify="left",
            caption=f"logits of the token after {PROMPT!r}",
            caption_justify="left",
            show_edge=False,
            pad_edge=False,
        )
        for column in ("token id", "published", "bundle", "difference"):
            table.add_column(column, justify="right")
        for row in self.rows:
            difference = f"{row.logit - row.published:+.4f}"
            table.add_row(str(row.token_id), f"{row.published:.4f}", f"{row.logit:.4f}", difference)
        console.print(table)
        console.print(f"greedy text: {self.equal_tokens} of {len(GREEDY_IDS)} tokens equal")
        verdict = "passed" if self.passed else "FAILED"
        if self.tolerance is None:
            bar = "logits are finite; quantized weights and half precision differ by design"
        else:
            bar = f"bar for this recipe: differences up to {self.tolerance:g} and equal tokens"
        console.print(Text(f"{verdict} ({bar})", style="green" if self.passed else "bold red"))


def validate_golden(path: str | os.PathLike[str], *, progress: ProgressCallback | None = None) -> GoldenReport:
    """Hold the bundle at ``path`` against the published values.

    Raises:
        UsageError: the bundle is of another model, or its tokenizer gives other ids for the prompt.
        BundleError, TokenizerError: it cannot be read.
        ProviderError: it is for a GPU, and there is none that can be used.
    """
    report = progress or silent
    bundle = Bundle.open(path)
    check_config(bundle)
    check_device(bundle)
    ids = tuple(load_tokenizer(bundle).encode(PROMPT))
    if ids != PROMPT_IDS:
        raise UsageError(
            f"the tokenizer of {bundle.path} is not that of {MODEL}", found=list(ids), expected=list(PROMPT_IDS)
        )
    session = open_session(bundle, context_length=64, cache=False, progress=report)
    try:
        report(ProgressEvent("bundle", f"{len(GREEDY_IDS)} tokens"))
        rows, greedy = continue_prompt(session)
    finally:
        session.close()
    storage = {record.dtype for record in bundle.manifest.tensors}
    return GoldenReport(
        bundle=str(bundle.path),
        recipe=str(bundle.manifest.recipe["name"]),
        tolerance=TOLERANCE if storage == {"float32"} else None,
        rows=rows,
        greedy_ids=greedy,
    )


def check_config(bundle: Bundle) -> None:
    """Raise UsageError unless the bundle's config.json is the published model's."""
    config = HeliumConfig.from_dict(bundle.model_config, source=f"{bundle.path}/helium.json")
    wrong = [name for name, value in PREVIEW_2B.items() if getattr(config, name) != value]
    if wrong:
        raise UsageError(
            f"{bundle.path} is no bundle of {MODEL}: the published values are not for it",
            found=", ".join(f"{name} {getattr(config, name)}" for name in wrong),
            expected=", ".join(f"{name} {PREVIEW_2B[name]}" for name in wrong),
            remedy="validate it beside its own checkpoint: --against CHECKPOINT",
        )


def continue_prompt(session: Session) -> tuple[tuple[GoldenRow, ...], tuple[int, ...]]:
    """The session's logits of the ten tokens after the prompt, and its greedy continuation."""
    past = session.new_past(1)
    logits = session.run("prefill", np.array([PROMPT_IDS], np.int64), past)[0, -1]
    pairs = zip(TOP_IDS, TOP_LOGITS, strict=True)
    rows = tuple(GoldenRow(token_id, published, float(logits[token_id])) for token_id, published in pairs)
    tokens = [int(logits.argmax())]
    while len(tokens) < len(GREEDY_IDS):
        logits = session.run("decode", np.array([tokens[-1:]], np.int64), past)[0, -1]
        tokens.append(int(logits.argmax()))
    return rows, tuple(tokens)
