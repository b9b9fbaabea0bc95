"""Calibration text: what a model is shown while it is quantized, so that errors are weighed by real activations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from helium_onnx.bundle import sha256
from helium_onnx.config import HeliumConfig
from helium_onnx.errors import ExportError, TextError
from helium_onnx.recipe import recipe_folder
from helium_onnx.texts import read_texts, token_windows
from helium_onnx.tokenizer import Tokenizer

#: Help pages in six languages, shipped with the recipes, for those who give no text of their own.
SHIPPED = "calibration.jsonl"
#: Tokens times parameters that an automatic calibration spends: what 2 cores do in some minutes.
AUTOMATIC_WORK = 1 << 42
AUTOMATIC_TOKENS = (2048, 32768)
#: On helium-docs-7m 2048 tokens rank the matrices as the measured loss does (rank correlation 0.996).
SENSITIVITY_TOKENS = (512, 4096)
#: Tokens of a window, and windows that there should be: few tokens had better come from many pages. On helium-docs-7m
#: 2048 tokens in windows of 64 lost 7 % less than in windows of 512.
WINDOW_TOKENS, WINDOWS = (64, 512), 32
#: Of a text that is to weigh the inputs of a whole model; the shipped one has many times as much.
LEAST_TOKENS = 256


@dataclass(frozen=True)
class Calibration:
    """``windows`` of token ids, int64 ``[tokens]`` each, ``<s>`` first. ``file`` and ``sha256`` name their text."""

    windows: tuple[NDArray[np.int64], ...]
    file: str
    sha256: str

    @property
    def tokens(self) -> int:
        return sum(map(len, self.windows))


def automatic_tokens(config: HeliumConfig) -> int:
    """Tokens for a model of this size: 2,048 for 2.17 billion parameters, 32,768 for a small one."""
    least, most = AUTOMATIC_TOKENS
    return min(max(AUTOMATIC_WORK // config.num_parameters, least), most)


def sensitivity_tokens(config: HeliumConfig) -> int:
    """Tokens that the allocator's estimate is made from: forward and backward cost four times as much as forward."""
    least, most = SENSITIVITY_TOKENS
    return min(max(AUTOMATIC_WORK // (4 * config.num_parameters), least), most)


def load_calibration(
    path: str | os.PathLike[str] | None, tokenizer: Tokenizer, config: HeliumConfig, *, tokens: int = 0
) -> Calibration:
    """The first ``tokens`` tokens (0: as the model's size allows) of JSON Lines at ``path``, or of the shipped text.

    Raises:
        TextError: the file cannot be read as text, is too short, or is in a script that the tokenizer does not know.
        ExportError: the shipped text is not there.
    """
    file = recipe_folder() / SHIPPED if path is None else Path(path)
    if path is None and not file.is_file():
        raise ExportError(
            "the shipped calibration text is not there",
            found=f"no {file}",
            remedy="install helium-onnx anew, or give a text: --calibration FILE.jsonl",
        )
    wanted = tokens or automatic_tokens(config)
    least, most = WINDOW_TOKENS
    longest = min(max(wanted // WINDOWS, least), most, config.max_position_embeddings)
    found = token_windows(read_texts(file), tokenizer, max_tokens=longest, min_tokens=min(16, longest), limit=None)
    windows = first_tokens([np.array(window.ids, np.int64) for window in found], wanted)
    total = sum(map(len, windows))
    if total < LEAST_TOKENS:
        raise TextError(
            f"{file} is too short to calibrate with",
            found=f"{total} tokens",
            expected=f"at least {LEAST_TOKENS}; a few thousand from many pages are better",
            remedy="add pages, or leave the text out: one is shipped",
        )
    return Calibration(windows, file.name, sha256(file))


def first_tokens(windows: Sequence[NDArray[np.int64]], tokens: int) -> tuple[NDArray[np.int64], ...]:
    """As many windows as make ``tokens`` tokens, the last one cut."""
    chosen: list[NDArray[np.int64]] = []
    for window in windows:
        if tokens < 2:  # <s> alone says nothing
            break
        chosen.append(window[:tokens])
        tokens -= len(chosen[-1])
    return tuple(chosen)
