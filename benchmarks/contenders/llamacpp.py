"""llama.cpp, built for this processor by llama-cpp-python's source package, and driven through its C API.

Wheels on PyPI (xllamacpp 2026.10, llama-cpp-py-sync) are compiled for AVX2 at most, so that they would be measured
at a disadvantage on a processor with AVX-512 VNNI.
"""

from __future__ import annotations

from pathlib import Path

from common import ROOT, Environment

from contenders import ours
from contenders.model import Commands, Contender, Runtime, Weights

CONVERTERS = ROOT / "benchmarks" / "converters"


def convert(kind: str) -> Commands:
    def commands(python: str, checkpoint: Path, out: Path) -> list[list[str]]:
        return [[python, str(CONVERTERS / "gguf_file.py"), str(checkpoint), str(out / "model.gguf"), kind]]

    return commands


def quantize(*kind: str) -> Commands:
    """By way of a GGUF file in bfloat16, as llama.cpp's documentation has it."""

    def commands(python: str, checkpoint: Path, out: Path) -> list[list[str]]:
        whole = str(out / "bfloat16.gguf")
        return [
            [python, str(CONVERTERS / "gguf_file.py"), str(checkpoint), whole, "bf16"],
            [python, str(CONVERTERS / "gguf_quantize.py"), whole, str(out / "model.gguf"), *kind],
            ["rm", whole],
        ]

    return commands


def gguf(out: str, commands: Commands) -> Weights:
    return Weights(out, commands, load="model.gguf", files=("model.gguf",))


RUNTIME = Runtime(
    "llama.cpp",
    # GGML_NATIVE is the default of that build: all instruction sets of this machine. What it makes takes 8 minutes.
    Environment("llamacpp", (("--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.36", "gguf==0.19.0"),)),
    "llamacpp.py",
    float32=gguf("gguf-f32", convert("f32")),
    float32_settings={"flash_attn_type": 0, "type_k": 0, "type_v": 0},
)
#: Flash attention off decodes faster on this CPU, and prefills as fast. Weights repacked at load, which is llama.cpp's
#: default, and physical batches of 512 (as here, so is it); keys and values in float16, its default too.
SETTINGS = {"flash_attn_type": 0}
ALTERNATIVES = {
    "flash attention": {"flash_attn_type": 1},
    "as it comes (flash attention: auto)": {},
    "keys and values in float32": {"flash_attn_type": 0, "type_k": 0, "type_v": 0},
    "keys and values in 8 bits": {"flash_attn_type": 1, "type_k": 8, "type_v": 8},
    "n_ubatch 128": {"flash_attn_type": 0, "n_ubatch": 128},
    "not repacked": {"flash_attn_type": 0, "use_extra_bufts": False},
}
ROWS = (
    Contender(
        "llama.cpp Q4_0",
        RUNTIME,
        gguf("gguf-q4_0", quantize("q4_0", "pure")),
        "4 bits, block 32, symmetric, head and embedding too",
        ours.BLOCK_32,
        SETTINGS,
        ALTERNATIVES,
    ),
    Contender(
        "llama.cpp Q4_K_M",
        RUNTIME,
        gguf("gguf-q4_k_m", quantize("q4_k_m")),
        "4.5 and 6.6 bits, blocks of 32 in 256; down_proj Q5_0 and Q8_0 where its width is no multiple of 256",
        None,
        SETTINGS,
        ALTERNATIVES,
    ),
)
