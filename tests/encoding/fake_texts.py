"""A session of whole texts in twenty lines: what it gives is a function of ids and mask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tiny
from numpy.typing import NDArray

from helium_onnx.config import HeliumConfig
from helium_onnx.tokenizer import Tokenizer

#: int64 ids ``[batch, sequence]`` and mask to the graph's output.
Output = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]


class FakeTexts:
    """Keeps the shapes of its calls in ``calls``."""

    batch_tokens = 4096
    vocab_size = tiny.SIZES["vocab_size"]

    def __init__(self, output: Output, context_length: int = 64) -> None:
        self.output, self.context_length = output, context_length
        self.calls: list[tuple[int, ...]] = []
        self.closed = False

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        assert input_ids.shape == attention_mask.shape
        assert input_ids.dtype == attention_mask.dtype == np.int64
        assert (np.diff(attention_mask, axis=1) <= 0).all(), "padded on the right"
        self.calls.append(input_ids.shape)
        return self.output(input_ids, attention_mask)

    def close(self) -> None:
        self.closed = True


def config(architecture: str, **fields: object) -> HeliumConfig:
    """The tiny model's, as of a class of transformers."""
    base = {"model_type": "helium", "architectures": [architecture], "head_dim": 16, "pad_token_id": 3, **tiny.SIZES}
    return HeliumConfig.from_dict({**base, **fields}, source="fake_texts.py")


def tokenizer(folder: Path) -> Tokenizer:
    tiny.write_json(folder / "tokenizer.json", tiny.tokenizer(FakeTexts.vocab_size))
    return Tokenizer.from_folder(folder, vocab_size=FakeTexts.vocab_size, bos_token_id=1, eos_token_ids=(2,))
