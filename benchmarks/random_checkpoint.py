"""Make a random checkpoint in Helium's shapes, for measurements of size, time and memory.

    python benchmarks/random_checkpoint.py OUT                    # 2.17 B parameters, bf16, 4.3 GB, about a minute
    python benchmarks/random_checkpoint.py OUT --layers 2         # full widths, two layers
    python benchmarks/random_checkpoint.py OUT --device cuda      # in some seconds; other values than the CPU's

Values are normal with the standard deviation of an untrained Helium (0.02), from a fixed seed. The tokenizer is the
sample's, filled up with pieces that no text contains.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch

SAMPLE = Path(__file__).parents[1] / "samples" / "helium-docs-7m"
#: kyutai/helium-1-preview-2b, from its config.json.
PREVIEW_2B = {
    "architectures": ["HeliumForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 1,
    "dtype": "bfloat16",
    "eos_token_id": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "intermediate_size": 7040,
    "max_position_embeddings": 4096,
    "mlp_bias": False,
    "model_type": "helium",
    "num_attention_heads": 20,
    "num_hidden_layers": 24,
    "num_key_value_heads": 20,
    "pad_token_id": 3,
    "rms_norm_eps": 1e-08,
    "rope_theta": 100000.0,
    "tie_word_embeddings": False,
    "vocab_size": 48000,
}


def size(config: dict[str, object], name: str) -> int:
    """A field that is a whole number."""
    value = config[name]
    assert isinstance(value, int), name
    return value


def shapes(config: dict[str, object]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Helium's tensors, in the order of the file."""
    h, m, v = (size(config, name) for name in ("hidden_size", "intermediate_size", "vocab_size"))
    kv = size(config, "num_key_value_heads") * size(config, "head_dim")
    layer = {
        "self_attn.q_proj": (h, h), "self_attn.k_proj": (kv, h), "self_attn.v_proj": (kv, h),
        "self_attn.o_proj": (h, h), "mlp.gate_proj": (m, h), "mlp.up_proj": (m, h), "mlp.down_proj": (h, m),
        "input_layernorm": (h,), "post_attention_layernorm": (h,),
    }  # fmt: skip
    named: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, h)}
    for i in range(size(config, "num_hidden_layers")):
        named |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return named | {"model.norm.weight": (h,), "lm_head.weight": (v, h)}


def write_weights(path: Path, config: dict[str, object], seed: int, std: float, device: str = "cpu") -> None:
    """A safetensors file, written tensor by tensor: header length, JSON header, data."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes(config).items():
        end = offset + 2 * int(torch.Size(shape).numel())
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator(device).manual_seed(seed)
    step = 1024 if device == "cpu" else 16384  # rows
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes(config).items():
            rows = shape[0]
            for start in range(0, rows, step):
                part = (min(step, rows - start), *shape[1:])
                values = torch.empty(part, device=device).normal_(0, std, generator=generator)
                values = values + 1 if "norm" in name else values
                file.write(values.to(torch.bfloat16).view(torch.int16).cpu().numpy().data)


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """The sample's tokenizer with as many pieces as the model has rows."""
    for name in ("tokenizer_config.json", "generation_config.json"):
        shutil.copy(SAMPLE / name, folder / name)
    tokenizer = json.loads((SAMPLE / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = tokenizer["model"]["vocab"]
    vocab += [[f"\U000f0000{i}", -100.0] for i in range(vocab_size - len(vocab))]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a random checkpoint in Helium's shapes.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--std", type=float, default=0.02)
    parser.add_argument("--device", default="cpu", help="where values are drawn: cpu, cuda")
    args = parser.parse_args()
    config: dict[str, object] = {**PREVIEW_2B, "num_hidden_layers": args.layers}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_tokenizer(args.out, size(config, "vocab_size"))
    write_weights(args.out / "model.safetensors", config, args.seed, args.std, args.device)


if __name__ == "__main__":
    main()
