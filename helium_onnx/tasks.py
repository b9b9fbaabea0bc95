"""What a model's graphs compute: one row a task, by the names that Hugging Face gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from helium_onnx.errors import UsageError

Task: TypeAlias = Literal["text-generation", "feature-extraction", "text-classification", "token-classification"]
TASKS: tuple[Task, ...] = get_args(Task)
#: The task that the checkpoint's config.json names.
AUTO = "auto"


@dataclass(frozen=True)
class TaskRow:
    """One task: ``suffix`` ends the names of its classes in ``transformers`` (``HeliumForCausalLM``), ``verb`` is the
    command that runs it. ``labels``: its outputs stand for labels, and it has a classifier, ``score``.
    """

    task: Task
    suffix: str
    verb: str
    labels: bool = False

    def architecture(self, model_type: str) -> str:
        """The class of ``transformers``, as ``HeliumForSequenceClassification``."""
        return f"{model_type.capitalize()}{self.suffix}"


ROWS: dict[Task, TaskRow] = {
    row.task: row
    for row in (
        TaskRow("text-generation", "ForCausalLM", "generate"),
        TaskRow("feature-extraction", "Model", "embed"),
        TaskRow("text-classification", "ForSequenceClassification", "classify", labels=True),
        TaskRow("token-classification", "ForTokenClassification", "tag", labels=True),
    )
}


def task_of(architectures: Sequence[str], model_type: str) -> Task | None:
    """The task of a checkpoint whose config.json lists ``architectures``; None where no row has its class.

    A config that lists none is a language model's.
    """
    if not architectures:
        return "text-generation"
    return next((row.task for row in ROWS.values() if row.architecture(model_type) in architectures), None)


def checked_task(asked: str) -> Task | None:
    """``asked`` as a task, None for ``auto``; UsageError where it is neither."""
    for task in TASKS:
        if task == asked:
            return task
    if asked == AUTO:
        return None
    raise UsageError("there is no such task", found=repr(asked), expected=", ".join((AUTO, *TASKS)))
