"""Adapter files of a bundle in onnxruntime-genai: several through one model, each request with its own or none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from environments import GENAI
from jobs import run_script

import helium_onnx

PROMPT = "The table shows the keys of the menu"
TOKENS = 40


@pytest.fixture(scope="module")
def adapters(sample_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two of peft's, of different rank, that change what the model says."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # peft looks for the base model's config on the Hub when it saves
    import peft
    import torch
    import transformers

    folders = {}
    for name, rank, targets in (("small", 2, ["q_proj", "v_proj"]), ("large", 12, "all-linear")):
        base = transformers.AutoModelForCausalLM.from_pretrained(sample_checkpoint, dtype=torch.float32)
        torch.manual_seed(rank)
        config = peft.LoraConfig(r=rank, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
        folders[name] = tmp_path_factory.mktemp("adapters") / name
        peft.get_peft_model(base, config).save_pretrained(folders[name])
    return folders


@pytest.mark.parametrize("recipe", ["cpu-fp32", "portable-fp32"])
def test_tokens_are_ours(recipe: str, sample_checkpoint: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    bundle = helium_onnx.export(
        sample_checkpoint, tmp_path / "out", recipe=recipe, adapter=adapters, adapter_mode="runtime"
    )
    requests = ["large", None, "small", "large", None]
    with helium_onnx.load(bundle.path, cache=False) as model:
        prompt = model.tokenizer.encode(PROMPT)
        results = [
            model.generate(PROMPT, adapter=name, max_new_tokens=TOKENS, speculation="off").generations[0]
            for name in requests
        ]
    expected = [list(result.token_ids) for result in results]
    assert len({tuple(ids) for ids in expected}) == 3
    files = {name: str(bundle.path / f"adapters/{name}.onnx_adapter") for name in adapters}
    job = {"model": str(bundle.path), "adapters": files, "prompt": prompt, "requests": requests}
    assert run_script(GENAI, "adapters.py", {**job, "max_new_tokens": TOKENS}) == expected
