"""model.onnx in ONNX Runtime with nothing around it, as clients run it: quantized weights then round as in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

PAD, EOS = 3, 2


class ModelGraph:
    """A bundle's ``model.onnx``. Every step takes the whole batch, padded on the left, as optimum and transformers.js
    send it.
    """

    def __init__(self, bundle: Path) -> None:
        self._session = ort.InferenceSession(bundle / "onnx/model.onnx", providers=["CPUExecutionProvider"])
        pasts = [value for value in self._session.get_inputs() if value.name.startswith("past_key_values")]
        self._pasts = {value.name: (value.shape[1], value.shape[3]) for value in pasts}

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        """Of every position of one text, in one call: float32 ``[len(ids), vocab_size]``."""
        return self._run(np.array([ids], np.int64), np.ones((1, len(ids)), np.int64), self._empty(1))[0][0]

    def greedy(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        """The new ids of each prompt, up to and with eos."""
        width = max(map(len, prompts))
        ids = np.array([[PAD] * (width - len(prompt)) + prompt for prompt in prompts], np.int64)
        mask = np.array([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], np.int64)
        past, chosen = self._empty(len(prompts)), []
        for _ in range(new_tokens):
            logits, past = self._run(ids, mask, past)
            ids = logits[:, -1:].argmax(-1)
            mask = np.concatenate([mask, np.ones_like(ids)], 1)
            chosen.append(ids[:, 0])
        rows = np.stack(chosen, 1).tolist()
        return [row[: row.index(EOS) + 1] if EOS in row else row for row in rows]

    def _empty(self, rows: int) -> dict[str, NDArray[np.float32]]:
        return {name: np.zeros((rows, heads, 0, size), np.float32) for name, (heads, size) in self._pasts.items()}

    def _run(
        self, ids: NDArray[np.int64], mask: NDArray[np.int64], past: dict[str, NDArray[np.float32]]
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        logits, *present = self._session.run(None, {"input_ids": ids, "attention_mask": mask, **past})
        names = [value.name for value in self._session.get_outputs()[1:]]
        return logits, {
            name.replace("present", "past_key_values"): value for name, value in zip(names, present, strict=True)
        }
