"""Tiny random checkpoints on disk: Helium's own form in every file, weights large enough to show a wrong RoPE.

(At Hugging Face's initial std of 0.02 a wrong pairing moves logits by 1e-3 only; at 0.25 by 11.)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from helium_onnx.checkpoint import expected_tensors
from helium_onnx.config import HeliumConfig

SPECIALS = ("<unk>", "<s>", "</s>", "<pad>")
#: Pieces after the specials and the 256 bytes, most frequent first: an id beyond the last is ``w60``, ``w61`` ...
PIECES = ("▁", *"etaonisrhldcumfpgwybvkxjqz", *".,'0123", "▁the", "▁a", "▁an", "▁of", "▁in", "in", "er", "on", "an",
          "▁de", "▁la", "▁le", "é", "è", "ü", "ß", "ñ", "ç", "à", "\n", "▁Once", "▁upon", "▁time", "▁table",
          "ing", "tion")  # fmt: skip
SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def write_checkpoint(
    folder: Path,
    *,
    model_type: str = "helium",
    dtype: str = "BF16",
    std: float = 0.25,
    seed: int = 0,
    shards: int = 1,
    tie: bool = False,
    **config_overrides: object,
) -> Path:
    """A random model of 0.1 M parameters in ``folder`` (made if need be), which is returned.

    ``dtype`` is ``BF16``, ``F16`` or ``F32``; ``config_overrides`` are fields of config.json. Norm weights are
    1 + std * normal, so that forgetting them shows; all others std * normal.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    config: dict[str, object] = {
        "architectures": ["HeliumForCausalLM" if model_type == "helium" else "LlamaForCausalLM"],
        "model_type": model_type,
        **SIZES,
        "head_dim": 16,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-8 if model_type == "helium" else 1e-6,
        "rope_parameters": {"rope_theta": 100000.0 if model_type == "helium" else 20000.0, "rope_type": "default"},
        "tie_word_embeddings": tie,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        "dtype": names[dtype],
        **config_overrides,
    }
    checked = HeliumConfig.from_dict(config, source="tests/tiny.py")
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"_from_model_config": True, **tokens})
    write_json(folder / "tokenizer.json", tokenizer(checked.vocab_size))
    write_json(folder / "tokenizer_config.json", tokenizer_config(checked.max_position_embeddings))

    rng = np.random.default_rng(seed)
    tensors = {
        name: ((len(shape) == 1) + std * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in expected_tensors(checked).items()
    }
    if shards == 1:
        write_tensors(folder / "model.safetensors", tensors, dtype)
        return folder
    files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    weight_map = {name: files[i % shards] for i, name in enumerate(tensors)}
    for file in files:
        write_tensors(
            folder / file, {name: tensors[name] for name, owner in weight_map.items() if owner == file}, dtype
        )
    total = sum(tensor.size for tensor in tensors.values()) * (4 if dtype == "F32" else 2)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)
    return folder


def write_tensors(path: Path, tensors: dict[str, np.ndarray[Any, Any]], dtype: str) -> None:
    """A safetensors file of ``tensors``: float32 is rounded to ``dtype``, float64 and int8 are stored as they are."""
    converters: dict[str, Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]] = {
        "BF16": to_bf16,
        "F16": lambda x: x.astype(np.float16),
        "F32": lambda x: x,
    }
    convert = converters[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, tensor in tensors.items():
        kind = dtype if tensor.dtype == np.float32 else {"float64": "F64", "int8": "I8"}[tensor.dtype.name]
        stored = (convert(tensor) if tensor.dtype == np.float32 else tensor).tobytes()
        header[name] = {"dtype": kind, "shape": tensor.shape, "data_offsets": [len(data), len(data) + len(stored)]}
        data += stored
    write_safetensors(path, header, bytes(data))


def write_safetensors(path: Path, header: dict[str, object], data: bytes) -> None:
    """A file of this header, whatever it says, and this data."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def to_bf16(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The upper 16 bits of finite float32, rounded to nearest, ties to even; NaN and infinity as they are."""
    bits = x.view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    return (np.where(np.isfinite(x), rounded, bits) >> 16).astype(np.uint16)


def edit_json(path: Path, *drop: str, **changes: object) -> None:
    """Change and drop top-level fields of a JSON file; NaN is written as NaN."""
    data = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {name: value for name, value in {**data, **changes}.items() if name not in drop})


def write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2), encoding="utf-8")


def tokenizer_config(context: int) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }


def tokenizer(vocab_size: int) -> dict[str, object]:
    """tokenizer.json of exactly ``vocab_size`` tokens in Helium's form: Unigram with byte fallback, ``<s>`` before."""
    least = len(SPECIALS) + 256
    assert vocab_size > least + len("▁"), f"a tokenizer with byte fallback needs more than {least + 1} tokens"
    pieces = [*PIECES, *(f"w{i}" for i in range(len(PIECES), vocab_size))][: vocab_size - least]
    vocab: list[tuple[str, float]] = [(name, 0.0) for name in SPECIALS]
    vocab += [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    vocab += [(piece, -3.0 - i / 20) for i, piece in enumerate(pieces)]
    first, text = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 0}}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": SPECIALS[i], **flags, "single_word": True} for i in (1, 2, 3)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": " "},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"String": "\n"}, "behavior": "Contiguous", "invert": False}
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, text],
            "pair": [first, text, first, second],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": True},
    }
