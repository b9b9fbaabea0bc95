"""The small files beside the graphs: what optimum, transformers.js and onnxruntime-genai read of a bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from helium_onnx import contract
from helium_onnx.checkpoint import Checkpoint
from helium_onnx.config import HeliumConfig
from helium_onnx.contract import Graph
from helium_onnx.errors import TokenizerError
from helium_onnx.recipe import Recipe


def write_client_files(folder: Path, checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Write config.json, generation_config.json, genai_config.json and the tokenizer's files into ``folder``."""
    config = checkpoint.config
    raw = _read(checkpoint.folder / "config.json")
    # transformers.js looks for weights beside the graph only when told; "model.onnx": 1 counts the data files.
    raw["transformers.js_config"] = {"use_external_data_format": {"model.onnx": 1}}
    if config.task != "text-generation":
        raw["architectures"] = list(config.architectures)
        if config.id2label:
            raw["id2label"] = {str(i): label for i, label in enumerate(config.id2label)}
            raw["label2id"] = {label: i for i, label in enumerate(config.id2label)}
            raw["problem_type"] = config.problem_type
        _write(folder / "config.json", raw)
        _copy_rest(checkpoint, folder)
        return
    if (cache := recipe.precision.key_value_cache) != "float32":
        # Version 4 reads the type off the graph. Version 3 needs to be told float16, and refuses others by name.
        raw["transformers.js_config"]["kv_cache_dtype"] = cache
    _write(folder / "config.json", raw)
    _write(folder / "generation_config.json", _generation_config(checkpoint))
    _write(folder / "genai_config.json", genai_config(config, recipe))
    _copy_rest(checkpoint, folder)


def _copy_rest(checkpoint: Checkpoint, folder: Path) -> None:
    _copy_tokenizer(checkpoint.folder, folder)
    for path in sorted(checkpoint.folder.glob("LICENSE*")):
        shutil.copyfile(path, folder / path.name)


def genai_config(config: HeliumConfig, recipe: Recipe) -> dict[str, Any]:
    """What onnxruntime-genai reads. ``type`` is ``decoder``: it knows no Helium, and refuses an unknown type.

    Its graph is model.onnx, the form that is exact for the padded batches it sends. Graphs that concatenate past and
    present cannot share one buffer for both, and say so. With ``type`` laid over as ``decoder-pipeline`` it runs
    ``pipeline`` instead, prefill.onnx and decode.onnx, which give the same tokens and leave out the logits that nobody
    reads of a prompt. Only in bundles for CPUs: those for CUDA take their lengths by inputs that it has no name for.
    """
    pipeline = {"pipeline": [_pipeline(config)]} if recipe.execution_provider == "cpu" else {}
    return {
        "model": {
            "bos_token_id": config.bos_token_id,
            "context_length": config.max_position_embeddings,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": contract.GRAPH_FILES["model"],
                "head_size": config.head_dim,
                "hidden_size": config.hidden_size,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": config.num_attention_heads,
                "num_hidden_layers": config.num_hidden_layers,
                "num_key_value_heads": config.num_key_value_heads,
                **pipeline,
            },
            "eos_token_id": list(config.eos_token_ids),
            "pad_token_id": _pad(config),
            "type": "decoder",
            "vocab_size": config.vocab_size,
        },
        "search": {
            "do_sample": False,
            "max_length": config.max_position_embeddings,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": recipe.graph.operators != "standard",
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
        },
    }


def _pipeline(config: HeliumConfig) -> dict[str, Any]:
    """The two stages of one generation, in the terms of onnxruntime-genai: each runs on prompts or on single tokens."""

    def stage(graph: Graph, *, on_prompt: bool) -> dict[str, Any]:
        return {
            "filename": contract.GRAPH_FILES[graph],
            "inputs": [spec.name for spec in contract.tensors(graph, "input", config)],
            "outputs": [spec.name for spec in contract.tensors(graph, "output", config)],
            "run_on_prompt": on_prompt,
            "run_on_token_gen": not on_prompt,
        }

    return {"prefill": stage("prefill", on_prompt=True), "decode": stage("decode", on_prompt=False)}


def _pad(config: HeliumConfig) -> int:
    """The padding id; where a model has none, any id serves, since padding is masked."""
    if config.pad_token_id is not None:
        return config.pad_token_id
    return config.eos_token_ids[0] if config.eos_token_ids else 0


def _generation_config(checkpoint: Checkpoint) -> dict[str, Any]:
    path = checkpoint.folder / "generation_config.json"
    if path.is_file():
        return _read(path)
    config = checkpoint.config
    eos = list(config.eos_token_ids)
    return {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": config.pad_token_id,
    }


def _copy_tokenizer(source: Path, target: Path) -> None:
    if not (source / "tokenizer.json").is_file():
        raise TokenizerError(
            f"{source} has no tokenizer.json",
            expected="the tokenizer of the checkpoint beside config.json",
            remedy="copy it from the model's page; a bundle cannot read text without it",
        )
    shutil.copyfile(source / "tokenizer.json", target / "tokenizer.json")
    path = source / "tokenizer_config.json"
    raw = _read(path) if path.is_file() else {}
    # The one class that every client maps to "read tokenizer.json as it is".
    _write(target / "tokenizer_config.json", {**raw, "tokenizer_class": "PreTrainedTokenizerFast"})
    if (source / "special_tokens_map.json").is_file():
        shutil.copyfile(source / "special_tokens_map.json", target / "special_tokens_map.json")


def _read(path: Path) -> dict[str, Any]:
    raw = json.loads(path.read_text(encoding="utf-8"))
    return raw if isinstance(raw, dict) else {}


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
