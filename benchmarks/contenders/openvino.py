"""OpenVINO GenAI with optimum-intel's export.

optimum-intel has no Helium, but a Llama: converters/half_split_llama.py relabels one exactly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import ROOT, Environment

from contenders import ours
from contenders.model import Commands, Contender, Runtime, Weights

CONVERTERS = ROOT / "benchmarks" / "converters"


def relabel(python: str, checkpoint: Path, out: Path) -> list[list[str]]:
    return [[python, str(CONVERTERS / "half_split_llama.py"), str(checkpoint), str(out.parent / "as-llama")]]


def export(*options: str) -> Commands:
    def commands(python: str, _checkpoint: Path, out: Path) -> list[list[str]]:
        command = ["env", "HF_HUB_OFFLINE=1", python, "-m", "optimum.commands.optimum_cli", "export", "openvino"]
        command += ["--model", str(out.parent / "as-llama")]
        return [[*command, "--task", "text-generation-with-past", *options, str(out)]]

    return commands


def model(out: str, *options: str) -> Weights:
    return Weights(out, export(*options), relabel, files=("openvino_model.*",))


RUNTIME = Runtime(
    "OpenVINO GenAI",
    Environment(
        "openvino",
        (
            ("torch==2.13.0",),
            # Without what it asks for: torchvision, whose wheel brings CUDA along and is for images.
            ("--no-deps", "optimum-intel==2.2.0"),
            ("torch==2.13.0", "openvino-genai==2026.4.1.0", "openvino==2026.4.1", "nncf==3.4.0", "optimum==2.3.0",
             "transformers==5.5.4", "huggingface_hub<1.22", "requests", "setuptools", "safetensors"),
        ),
    ),
    "openvino_pipeline.py",
    float32=model("openvino-f32", "--weight-format", "fp32"),
    float32_settings={"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "ATTENTION_BACKEND": "SDPA"},
)  # fmt: skip
_INT4 = ("--weight-format", "int4", "--ratio", "1.0")
#: Activations rounded to 8 bits in groups as large as the weights' (the plugin's default is 32), as ours are.
SETTINGS = {"ATTENTION_BACKEND": "SDPA", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 64}
_PAGED: dict[str, Any] = {"enable_prefix_caching": False, "max_num_batched_tokens": 4096, "cache_size": 1}
ALTERNATIVES: dict[str, dict[str, Any]] = {
    "as it comes (paged attention)": {"scheduler": {"enable_prefix_caching": False}},
    "paged attention": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 64, "scheduler": _PAGED},
    "activations in groups of 32": {"ATTENTION_BACKEND": "SDPA"},
    "float32 instead of bfloat16": {**SETTINGS, "INFERENCE_PRECISION_HINT": "f32"},
    "keys and values in float32": {**SETTINGS, "KV_CACHE_PRECISION": "f32"},
}
ROWS = (
    Contender(
        "OpenVINO 4 bits/64",
        RUNTIME,
        model("openvino-int4-64", *_INT4, "--group-size", "64", "--sym", "--all-layers"),
        "4 bits, block 64, symmetric, head and embedding too",
        ours.BLOCK_64,
        SETTINGS,
        ALTERNATIVES,
    ),
    Contender(
        "OpenVINO int4",
        RUNTIME,
        model("openvino-int4", *_INT4, "--group-size", "64"),
        "4 bits, block 64, zero points; head and embedding 8 bits",
        ours.SHIPPED,
        SETTINGS,
        ALTERNATIVES,
    ),
)
