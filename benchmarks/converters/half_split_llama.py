"""Relabel a Helium as a Llama, exactly, for runtimes that know only Llama: runs in a peer's own environment.

    python half_split_llama.py CHECKPOINT OUT

Helium rotates elements 2i and 2i + 1 of a head, Llama in Hugging Face's layout i and i + head_dim / 2, both by the same
angle. Attention is a scalar product of queries and keys, so taking each head's even rows of q_proj and k_proj
first and its odd rows then changes the layout and nothing else. All else (RMSNorm, MLP, names) is equal, but for
where RMSNorm rounds in 16-bit arithmetic.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def half_split(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """``[heads * head_dim, hidden]`` with each head's even rows before its odd ones."""
    pairs = weight.view(-1, head_dim // 2, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape).contiguous()


def main() -> None:
    checkpoint, out = Path(sys.argv[1]), Path(sys.argv[2])
    if (out / "config.json").exists():  # which is written last
        return
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "helium", config["model_type"]
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    # Both spellings of theta: transformers 4 reads the first, transformers 5 the second.
    config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_theta": theta}
    config |= {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    out.mkdir(parents=True, exist_ok=True)
    tensors = load_file(checkpoint / "model.safetensors")
    for name, weight in tensors.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensors[name] = half_split(weight, config["head_dim"])
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(checkpoint / name, out / name)
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
