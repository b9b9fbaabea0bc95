"""Adapters that peft itself makes, with matrices large enough to show, and recipes that take no time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # peft looks for the base model's config on the Hub when it saves

import peft
import torch
import transformers

from helium_onnx.recipe import MatrixSettings, Quantization, Recipe

#: transformers' class for peft's task.
CLASSES = {
    "CAUSAL_LM": transformers.AutoModelForCausalLM,
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    "FEATURE_EXTRACTION": transformers.AutoModel,
}


def load_base(folder: Path, task: str = "CAUSAL_LM", **options: Any) -> Any:
    """transformers' model of a checkpoint, in float32."""
    return (
        CLASSES[task]
        .from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, **options)
        .eval()
    )


def write_adapter(
    base: Path, folder: Path, *, seed: int = 1, std: float = 0.25, labels: int | None = None, **options: Any
) -> Path:
    """What peft saves of random matrices beside the checkpoint ``base``; ``options`` are LoraConfig's."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **options}
    torch.manual_seed(seed)
    model = load_base(base, settings["task_type"], **({} if labels is None else {"num_labels": labels}))
    model = peft.get_peft_model(model, peft.LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape) * std)
            elif "modules_to_save" in name:
                parameter.add_(torch.randn(parameter.shape) * std)
    model.save_pretrained(folder)
    return folder


def adapted(base: Path, *folders: Path, merge: bool, **model_options: Any) -> Any:
    """peft's model of ``base`` with adapters, one merged after the other, or one beside the weights."""
    model = load_base(base, **model_options)
    for folder in folders:
        model = peft.PeftModel.from_pretrained(model, folder)
        if merge:
            model = model.merge_and_unload()
    return model.eval()


def quantized(bits: int, accuracy_level: int = 4) -> Recipe:
    """A recipe that rounds to the nearest, which takes no time."""
    kind = MatrixSettings(bits, 32, False)
    quantization = Quantization(
        "round-to-nearest", linear=kind, head=kind, embedding=kind, accuracy_level=accuracy_level
    )
    return Recipe(f"int{bits}", "for a test", quantization=quantization)


RECIPES: dict[str, str | Recipe] = {
    "fp32": "cpu-fp32",
    "fp32-standard": "portable-fp32",
    "int4": quantized(4),
    "int8": quantized(8),
    "int4-exact": quantized(4, accuracy_level=1),
}
