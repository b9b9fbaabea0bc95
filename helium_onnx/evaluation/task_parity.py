"""Parity of a task without generation: a bundle beside its class of ``transformers``, value by value, row by row."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import torch
import transformers
from numpy.typing import NDArray

from helium_onnx.bundle import Bundle
from helium_onnx.checkpoint import Checkpoint
from helium_onnx.config import HeliumConfig
from helium_onnx.encoding.batches import padded
from helium_onnx.evaluation.parity_table import print_table, print_verdict
from helium_onnx.evaluation.transformers_model import transformers_model
from helium_onnx.progress import ProgressCallback, ProgressEvent
from helium_onnx.recipe import Recipe
from helium_onnx.runtimes.whole_text_session import WholeTextSession
from helium_onnx.tasks import ROWS

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class TaskParityRow:
    """One text, in a batch with the others and padded on the right.

    ``difference`` is max |Δ| over its values as a part of the largest reference value of all texts, ``cosine`` that of
    its output with the reference's. ``same_label``: the label of the text, or of each of its tokens, is the
    reference's; None where there are no labels.
    """

    prompt: str
    prompt_tokens: int
    difference: float
    cosine: float
    same_label: bool | None


@dataclass(frozen=True)
class TaskParityReport:
    """What ``validate`` found for a task without generation. ``tolerance`` and ``warning`` are as in ParityReport."""

    bundle: str
    task: str
    recipe: str
    against: str
    graph: str
    tolerance: float | None
    warning: str | None
    versions: dict[str, str]
    rows: tuple[TaskParityRow, ...]

    @property
    def passed(self) -> bool:
        """float32: every value within the tolerance, every label equal. Else: values finite."""
        if self.tolerance is None:
            return all(math.isfinite(row.difference) for row in self.rows)
        return all(row.difference <= self.tolerance and row.same_label is not False for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """All of it for JSON; a figure that is no finite number is null."""
        return {
            **{name: getattr(self, name) for name in ("bundle", "task", "recipe", "against", "graph", "passed")},
            "tolerance": self.tolerance,
            "warning": self.warning,
            "versions": dict(self.versions),
            "rows": [
                {
                    **vars(row),
                    **{
                        name: value if math.isfinite(value) else None
                        for name, value in (("difference", row.difference), ("cosine", row.cosine))
                    },
                }
                for row in self.rows
            ],
        }

    def render(self, console: Console) -> None:
        """Print the report as a table and a verdict."""
        labels = {None: "", True: "same", False: "other"}
        print_table(
            console,
            f"{self.bundle} ({self.task}, {self.recipe}, {self.graph}) against transformers on {self.against}",
            ("text", "tokens", "difference", "cosine", "label"),
            [
                (
                    row.prompt,
                    str(row.prompt_tokens),
                    f"{row.difference:.1e}",
                    f"{row.cosine:.6f}",
                    labels[row.same_label],
                )
                for row in self.rows
            ],
            "difference: max |Δ| / max |reference|, all texts in one batch",
        )
        print_verdict(
            console,
            passed=self.passed,
            tolerance=self.tolerance,
            values="values",
            equal="labels",
            warning=self.warning,
        )


def task_parity(
    bundle: Bundle,
    checkpoint: Checkpoint,
    texts: Sequence[str],
    encoded: Sequence[Sequence[int]],
    *,
    provider: str,
    against: str | os.PathLike[str],
    tolerance: float | None,
    warning: str | None,
    report: ProgressCallback,
) -> TaskParityReport:
    """Run ``encoded``, the ids of ``texts``, through ``transformers`` one by one, and through the bundle in one batch
    (of a classifier without ``pad_token_id``: one by one). ``checkpoint`` is as ``Checkpoint.as_task`` gives it.
    """
    config = HeliumConfig.from_dict(bundle.model_config, source=f"{bundle.path}/helium.json")
    recipe = Recipe.from_dict(bundle.manifest.recipe, source=f"{bundle.path}/helium.json")
    report(ProgressEvent("reference", str(checkpoint.folder)))
    theirs = _reference(checkpoint, encoded)
    with contextlib.closing(WholeTextSession(bundle, provider=provider, progress=report)) as session:
        report(ProgressEvent("bundle", f"{len(encoded)} texts"))
        one_by_one = config.task == "text-classification" and config.pad_token_id is None
        batches = [[ids] for ids in encoded] if one_by_one else [list(encoded)]
        outputs = [row for batch in batches for row in session.run(*padded(batch, config.pad_token_id or 0))]
        graph = "model.native.onnx" if session.native else "model.onnx"
    per_text = config.task == "text-classification"
    ours = [row if per_text else row[: len(ids)] for row, ids in zip(outputs, encoded, strict=True)]
    scale = max(float(np.abs(row).max()) for row in theirs) or 1.0
    return TaskParityReport(
        bundle=str(bundle.path),
        task=bundle.task,
        recipe=recipe.name,
        against=os.fspath(against),
        graph=graph,
        tolerance=tolerance,
        warning=warning,
        versions={package.__name__: package.__version__ for package in (ort, torch, transformers)},
        rows=tuple(
            TaskParityRow(
                prompt=text,
                prompt_tokens=len(ids),
                difference=float(np.abs(a - b).max()) / scale,
                cosine=_cosine(a, b),
                same_label=bool((a.argmax(-1) == b.argmax(-1)).all()) if ROWS[bundle.task].labels else None,
            )
            for text, ids, a, b in zip(texts, encoded, ours, theirs, strict=True)
        ),
    )


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    lengths = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return float(np.vdot(a, b)) / lengths if lengths else math.nan


def _reference(checkpoint: Checkpoint, encoded: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
    """What ``transformers`` gives for each text alone: ``[tokens, size]``, or of a text's logits ``[labels]``."""
    model = transformers_model(checkpoint)
    with torch.inference_mode():
        return [model(torch.tensor([list(ids)]))[0][0].numpy() for ids in encoded]
