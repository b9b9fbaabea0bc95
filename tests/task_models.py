"""Models of ``transformers`` for the tasks without generation: random, and large enough for a wrong RoPE to show."""

from __future__ import annotations

from typing import Any

import numpy as np
import reference
import torch
import transformers
from numpy.typing import NDArray

from helium_onnx.tasks import ROWS, Task

LABELS = {
    "text-classification": ("de", "en", "es", "fr", "it"),
    "token-classification": ("O", "B-KEY", "I-KEY", "MENU"),
}
TEXT_TASKS: tuple[Task, ...] = ("feature-extraction", "text-classification", "token-classification")


def make_model(task: Task, model_type: str, *, std: float = 0.25, **config: Any) -> Any:
    """A random float32 model of the task's class, of 3 layers, 4 heads and 2 key/value heads."""
    kind = {"helium": transformers.HeliumConfig, "llama": transformers.LlamaConfig}[model_type]
    labels = LABELS.get(task)
    named = {} if labels is None else {"id2label": dict(enumerate(labels))}
    settings = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-8 if model_type == "helium" else 1e-6,
        "rope_parameters": {"rope_theta": 100_000.0 if model_type == "helium" else 20_000.0, "rope_type": "default"},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        "attn_implementation": "eager",
        **named,
        **config,
    }
    model = getattr(transformers, ROWS[task].architecture(model_type))(kind(**settings)).eval()
    return reference.randomized(model, std)


def output_of(
    model: Any, ids: NDArray[np.int64], mask: NDArray[np.int64], rounded: reference.Rounded | None = None
) -> NDArray[np.float32]:
    """What ``transformers`` gives: hidden states or logits; over a rounded cache where one is given."""
    cache = None if rounded is None else reference.RoundedCache(rounded)
    with torch.inference_mode():
        result = model(
            input_ids=torch.from_numpy(ids).to(model.device),
            attention_mask=torch.from_numpy(mask).to(model.device),
            past_key_values=cache,
        )
    output: NDArray[np.float32] = result[0].float().cpu().numpy()
    return output


def real(output: NDArray[np.float32], mask: NDArray[np.int64]) -> NDArray[np.float32]:
    """Of tokens, those that are no padding; of rows all."""
    return output[mask == 1] if output.ndim == 3 else output
