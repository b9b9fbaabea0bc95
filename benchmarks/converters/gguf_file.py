"""Write a Helium's checkpoint as a GGUF file of llama.cpp's architecture ``llama``: runs in that peer's environment.

    python gguf_file.py CHECKPOINT OUT.gguf f32|bf16

llama.cpp rotates neighbours for ``llama`` (its "norm" layout), as Helium does, so q and k stay as they are; Hugging
Face's Llamas are the ones whose rows its own converter permutes. Pieces, scores and types of the tokenizer go along
under SentencePiece's name; the measurements feed ids.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import numpy as np

LAYER = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
REST = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}


def names(layers: int) -> dict[str, str]:
    """The checkpoint's names and GGUF's, in the order of the file."""
    each = {f"model.layers.{i}.{hf}": f"blk.{i}.{theirs}" for i in range(layers) for hf, theirs in LAYER.items()}
    return {f"{hf}.weight": f"{theirs}.weight" for hf, theirs in (REST | each).items()}


def bfloat16_tensors(path: Path) -> dict[str, np.memmap]:
    """The bits of a safetensors file's tensors, mapped: its header's length, its header, its data."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    assert {entry["dtype"] for entry in header.values()} == {"BF16"}, "only bfloat16 checkpoints"
    return {
        name: np.memmap(path, np.uint16, "r", 8 + length + entry["data_offsets"][0], tuple(entry["shape"]))
        for name, entry in header.items()
    }


def float32(bits: np.ndarray) -> np.ndarray:
    """The values of bfloat16's bits, which are the upper half of float32's."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def add_vocabulary(writer: gguf.GGUFWriter, checkpoint: Path, config: dict[str, int]) -> None:
    pieces = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert len(pieces) == config["vocab_size"]
    kinds = [gguf.TokenType.BYTE if len(p) == 6 and p.startswith("<0x") else gguf.TokenType.NORMAL for p, _ in pieces]
    kinds[0] = gguf.TokenType.UNKNOWN
    kinds[1:4] = [gguf.TokenType.CONTROL] * 3
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece for piece, _ in pieces])
    writer.add_token_scores([score for _, score in pieces])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])


def main() -> None:
    checkpoint, out, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "helium", config["model_type"]
    quantization, file_type = TYPES[kind]
    stored = bfloat16_tensors(checkpoint / "model.safetensors")
    tensors = {theirs: stored[hf] for hf, theirs in names(config["num_hidden_layers"]).items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(out, "llama", use_temp_file=False)
    writer.add_file_type(file_type)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    add_vocabulary(writer, checkpoint, config)
    matrices = {name: (quantization if values.ndim == 2 else TYPES["f32"][0]) for name, values in tensors.items()}
    for name, values in tensors.items():  # first the header ...
        size = values.size * (2 if matrices[name].name == "BF16" else 4)
        writer.add_tensor_info(name, values.shape, np.dtype(np.float32), size, matrices[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, values in tensors.items():  # ... then one tensor at a time
        raw = np.asarray(values)
        writer.write_tensor_data(raw if matrices[name].name == "BF16" else float32(raw))
    writer.close()


if __name__ == "__main__":
    main()
