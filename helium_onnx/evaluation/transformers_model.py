"""The model of ``transformers`` that a bundle is held against."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import transformers

from helium_onnx.adapters.merging import MergedCheckpoint
from helium_onnx.checkpoint import SCORE, Checkpoint
from helium_onnx.tasks import ROWS


def transformers_model(checkpoint: Checkpoint) -> Any:
    """The class that the checkpoint's config names, in float32 with eager attention, adapters merged."""
    config = checkpoint.config
    kind = getattr(transformers, ROWS[config.task].architecture(config.model_type))
    labels = {"num_labels": config.num_labels} if config.num_labels else {}
    with _quiet():
        model = kind.from_pretrained(
            checkpoint.folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, **labels
        ).eval()
    if isinstance(checkpoint, MergedCheckpoint):
        prefix = "model." if config.task == "feature-extraction" else ""  # its names lack that
        for name, parameter in model.named_parameters():
            if prefix + name in checkpoint.changed or name == SCORE:
                parameter.data = torch.from_numpy(checkpoint.read(prefix + name))
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The caller has a way of its own to show progress; and that a base model lacks a head is no news."""
    logging = transformers.utils.logging
    shows_progress, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shows_progress:
            logging.enable_progress_bar()
