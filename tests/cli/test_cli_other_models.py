"""helium-onnx export of what is no Helium: one message that says why, exit code 1, and nothing written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from command_line import invoke, names_in

FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "llama3": ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling cannot be used"),
    "linear": ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling cannot be used"),
    "yarn": ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 2e4, "factor": 4.0}}, "rope_parameters.rope_type"),
    "dynamic": ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, "rope_parameters.rope_type"),
    "longrope": ({"rope_parameters": {"rope_type": "longrope", "long_factor": [1.0]}}, "rope_parameters.rope_type"),
    "partial": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor cannot be used"),
    "partial-nested": ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters cannot be used"),
    "attention-bias": ({"attention_bias": True}, "attention_bias cannot be used"),
    "mlp-bias": ({"mlp_bias": True}, "mlp_bias cannot be used"),
    "window": ({"sliding_window": 128}, "sliding_window cannot be used"),
    "activation": ({"hidden_act": "gelu_pytorch_tanh"}, "hidden_act cannot be used"),
    "heads": ({"head_dim": 32}, "head_dim cannot be used"),
    "quantized": ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "quantization_config cannot be used"),
    "class": ({"architectures": ["MistralForCausalLM"]}, "architectures cannot be used"),
    "type": ({"model_type": "mistral"}, "model_type cannot be used"),
}

SIZES = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3,
}  # fmt: skip
#: Models of other families, saved by transformers and relabelled, as somebody might to get past the first message.
OTHERS: dict[str, tuple[str, dict[str, int], str]] = {
    "mistral": ("Mistral", {}, "sliding_window"),
    "qwen2": ("Qwen2", {}, "architectures"),
    "qwen3": ("Qwen3", {"head_dim": 16}, "architectures"),
    "granite": ("Granite", {}, "attention_multiplier"),
    "gemma2": ("Gemma2", {"head_dim": 16}, "sliding_window"),
    "phi3": ("Phi3", {}, "architectures"),
    "mixtral": ("Mixtral", {}, "num_local_experts"),
}
#: What their weights say where every class in config.json was changed to a Llama's as well.
WEIGHTS = {"qwen2": "q_proj.bias", "qwen3": "q_norm.weight", "gemma2": "feedforward_layernorm", "phi3": "missing"}


def refused(checkpoint: Path, what: str) -> str:
    result = invoke("export", checkpoint, checkpoint.parent / "out", "--recipe", "cpu-fp32", "--offline")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    error = result.stderr[result.stderr.index("error: ") :]
    assert re.fullmatch(r"error: .*\n(  (found|expected|remedy):.*\n)+", error), error
    assert "remedy:" in error
    assert what in error
    assert names_in(checkpoint.parent) == [checkpoint.name]
    return error


@pytest.mark.parametrize("case", FIELDS)
def test_a_llama_that_helium_is_not(case: str, tmp_path: Path) -> None:
    changes, what = FIELDS[case]
    checkpoint = tiny.write_checkpoint(tmp_path / "llama", model_type="llama")
    tiny.edit_json(checkpoint / "config.json", **changes)
    error = refused(checkpoint, what)
    assert "correct the field" not in error or case == "heads"  # its weights would compute something else


@pytest.mark.parametrize("other", OTHERS)
def test_another_family_under_llamas_name(other: str, tmp_path: Path) -> None:
    family, fields, what = OTHERS[other]
    checkpoint = tmp_path / other
    config = getattr(transformers, f"{family}Config")(**SIZES, **fields)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(checkpoint)
    tiny.write_json(checkpoint / "tokenizer.json", tiny.tokenizer(320))
    assert "no Helium" in refused(checkpoint, "model_type cannot be used")
    tiny.edit_json(checkpoint / "config.json", model_type="llama")
    refused(checkpoint, what)
    if other in WEIGHTS:  # nothing in config.json tells them now
        plain = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **SIZES, "rope_theta": 20_000.0}
        tiny.write_json(checkpoint / "config.json", {**plain, "tie_word_embeddings": other == "gemma2"})
        refused(checkpoint, WEIGHTS[other])


@pytest.mark.parametrize("field", ["attention_bias", "mlp_bias"])
def test_biases_that_config_json_does_not_own_up_to(field: str, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**SIZES, **{field: True})
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    tiny.write_json(tmp_path / "llama/tokenizer.json", tiny.tokenizer(320))
    refused(tmp_path / "llama", f"{field} cannot be used")
    tiny.edit_json(tmp_path / "llama/config.json", field)
    assert "optimum-onnx" in refused(tmp_path / "llama", "_proj.bias")


def test_quantized_weights_that_config_json_does_not_own_up_to(tmp_path: Path) -> None:
    """GPTQ as older tools write it, with a file of its own for its settings; and matrices in float8."""
    from safetensors.torch import load_file, save_file

    checkpoint = tiny.write_checkpoint(tmp_path / "gptq/llama", model_type="llama", dtype="F32")
    tensors = load_file(checkpoint / "model.safetensors")
    for name in [name for name in tensors if "_proj.weight" in name]:
        rows, columns = tensors.pop(name).shape
        tensors[name.replace(".weight", ".qweight")] = torch.zeros(columns // 8, rows, dtype=torch.int32)
    save_file(tensors, checkpoint / "model.safetensors")
    assert "quantized already" in refused(checkpoint, "lacks tensors")
    stored = tiny.write_checkpoint(tmp_path / "fp8/llama", model_type="llama", dtype="F32")
    tensors = load_file(stored / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name].to(torch.float8_e4m3fn)}, stored / "model.safetensors")
    refused(stored, name)
