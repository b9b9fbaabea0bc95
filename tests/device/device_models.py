"""Models for the tests on a GPU, and the PyTorch reference on the same GPU."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tiny
import torch
from numpy.typing import NDArray

from helium_onnx.bundle import Bundle
from helium_onnx.checkpoint import Checkpoint
from helium_onnx.config import HeliumConfig
from helium_onnx.evaluation.bundle_weights import BundleWeights
from helium_onnx.evaluation.fidelity import Figures, Scores, score, summarize
from helium_onnx.loading import load_tokenizer
from helium_onnx.modeling import HeliumForCausalLM, rope_tables
from helium_onnx.runtimes.session import Session
from helium_onnx.texts import read_texts, token_windows

ROOT = Path(__file__).parents[2]
VALID = ROOT / "benchmarks" / "data" / "valid.jsonl"
#: Of the wide model's weights: queries and keys are 3 in size, scores 9, so a wrong RoPE changes everything.
WIDE_STD = 0.06
#: Recipes for it (conftest.other_recipe). Round-to-nearest: GPTQ would take minutes, and rounds into the same layout.
WIDE = ("fp16", "bf16", "int4-64-zeros", "int4-32", "int8-128", "bf16-int4-32-zeros")
#: Tokens that are prefilled of each window, and tokens that follow one by one.
PREFILLED, STEPS = 64, 64


def write(model: str, folder: Path) -> Path:
    """A checkpoint: ``wide`` has Helium's full widths in two layers; ``grouped`` and ``llama`` share heads."""
    if model == "wide":
        return _wide(folder)
    return tiny.write_checkpoint(
        folder, model_type="llama" if model == "llama" else "helium", std=0.12, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, hidden_size=256, intermediate_size=512, max_position_embeddings=1024,
    )  # fmt: skip


def _wide(folder: Path) -> Path:
    sys.path.append(str(ROOT / "benchmarks"))
    import random_checkpoint

    config: dict[str, object] = {**random_checkpoint.PREVIEW_2B, "num_hidden_layers": 2}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    random_checkpoint.write_tokenizer(folder, 48000)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    random_checkpoint.write_weights(folder / "model.safetensors", config, 0, WIDE_STD, device)
    return folder


def windows(bundle: Bundle, model: str, count: int = 12) -> list[list[int]]:
    """Texts to compare on: pages for the trained model, random ids for the others."""
    length = PREFILLED + STEPS
    if model == "docs":
        pages = token_windows(
            read_texts(VALID), load_tokenizer(bundle), max_tokens=length, min_tokens=length, limit=count
        )
        return [list(page.ids) for page in pages]
    vocab_size = int(bundle.model_config["vocab_size"])
    return np.random.default_rng(7).integers(4, vocab_size, (count, length)).tolist()  # type: ignore[no-any-return]


class Reference:
    """Our PyTorch model on the device, in float32 or in a half-precision type throughout (tables too)."""

    def __init__(
        self, weights: Checkpoint | BundleWeights, config: HeliumConfig, dtype: torch.dtype = torch.float32
    ) -> None:
        with torch.device("meta"):
            model = HeliumForCausalLM(config)
        state = {name: torch.from_numpy(weights.read(name)) for name in model.state_dict()}
        model.load_state_dict(state, assign=True)
        model.cos, model.sin = rope_tables(config)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = model.eval().requires_grad_(False).to(self.device, dtype)
        self._dtype = dtype

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """All positions of one row: ``[tokens, vocab_size]``."""
        batch = torch.tensor([list(ids)], device=self.device)
        past = [tensor.to(self.device, self._dtype) for tensor in self._model.empty_past()]
        with torch.inference_mode():
            logits: NDArray[np.float32] = self._model(batch, torch.ones_like(batch), past)[0][0].float().cpu().numpy()
        return logits


@functools.cache
def of_checkpoint(folder: Path, dtype: torch.dtype = torch.float32) -> Reference:
    checkpoint = Checkpoint.open(folder)
    return Reference(checkpoint, checkpoint.config, dtype)


@functools.cache
def of_bundle(path: Path, dtype: torch.dtype = torch.float32) -> Reference:
    """The weights that a bundle stores: what is left then is the arithmetic of its kernels."""
    bundle = Bundle.open(path)
    config = HeliumConfig.from_dict(bundle.model_config, source=str(bundle.path))
    return Reference(BundleWeights(bundle), config, dtype)


Compared = Callable[[Sequence[int]], NDArray[np.float32]]


def stepwise(session: Session, ids: Sequence[int]) -> NDArray[np.float32]:
    """The session's logits from the last prefilled position on: prefill, and then token by token."""
    past = session.new_past(1)
    row = np.array([ids], np.int64)
    found = [session.run("prefill", row[:, :PREFILLED], past)[0, -1].copy()]
    for position in range(PREFILLED, row.shape[1]):
        found.append(session.run("decode", row[:, position : position + 1], past)[0, -1].copy())
    return np.stack(found)


def figures(texts: Sequence[Sequence[int]], reference: Sequence[NDArray[np.float32]], logits: Compared) -> Figures:
    """KL, top-1 and the rest of ``logits(ids)`` (from the last prefilled position on) beside the reference's."""
    scores: list[Scores] = []
    for ids, wanted in zip(texts, reference, strict=True):
        ours = logits(ids)[-(STEPS + 1) : -1]  # the last one predicts nothing of the text
        scores.append(score(wanted[PREFILLED - 1 : -1], ours, np.array(ids[PREFILLED:], np.int64)))
    return summarize(scores)
