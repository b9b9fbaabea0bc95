"""transformers in PyTorch on the CPU, eager: what a user has without any export."""

from __future__ import annotations

from common import Environment

from contenders.model import Contender, Runtime, Weights

CHECKPOINT = Weights(None, files=("*.safetensors",))
RUNTIME = Runtime(
    "transformers",
    Environment("transformers", (("torch==2.13.0",), ("torch==2.13.0", "transformers==5.23.0"))),
    "hf.py",
    float32=CHECKPOINT,
    float32_settings={"dtype": "float32"},
)
ROWS = tuple(
    Contender(f"transformers {dtype}", RUNTIME, CHECKPOINT, dtype, settings={"dtype": dtype})
    for dtype in ("bfloat16", "float32")
)
