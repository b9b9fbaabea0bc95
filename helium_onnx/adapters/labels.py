"""A classifier's labels, where an adapter brings its head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from helium_onnx.config import HeliumConfig


def labels_config(folders: Sequence[Path]) -> HeliumConfig | None:
    """The config of the last adapter whose folder has a config.json, or None.

    peft keeps no names of labels; ``model.config.save_pretrained(folder)`` beside the adapter does. Raises ConfigError.
    """
    files = [folder / "config.json" for folder in folders if (folder / "config.json").is_file()]
    return HeliumConfig.from_file(files[-1]) if files else None
