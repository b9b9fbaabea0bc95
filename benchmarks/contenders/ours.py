"""helium-onnx: bundles of the checkpoint through ``OnnxRuntimeSession``."""

from __future__ import annotations

import sys
from pathlib import Path

from common import ROOT, Environment

from contenders.model import Commands, Contender, Runtime, Weights


def export(recipe: str) -> Commands:
    def commands(_python: str, checkpoint: Path, out: Path) -> list[list[str]]:
        command = [sys.executable, "-m", "helium_onnx", "export", str(checkpoint), str(out), "--force", "--quiet"]
        return [[*command, "--recipe", recipe]]

    return commands


def bundle(out: str, recipe: str) -> Weights:
    return Weights(out, export(recipe), files=("onnx/*",))


RUNTIME = Runtime("helium-onnx", Environment("helium-onnx"), "ours.py", float32=bundle("fp32", "cpu-fp32"))
BLOCK_32 = "helium-onnx 4 bits/32"
BLOCK_64 = "helium-onnx 4 bits/64"
SHIPPED = "helium-onnx cpu-int4-fast"
ROWS = (
    Contender(
        BLOCK_32,
        RUNTIME,
        bundle("equal-weights-32", str(ROOT / "benchmarks/equal_weights_32.toml")),
        "4 bits, block 32, symmetric, head and embedding too",
    ),
    Contender(
        BLOCK_64,
        RUNTIME,
        bundle("equal-weights", str(ROOT / "benchmarks/equal_weights.toml")),
        "4 bits, block 64, symmetric, head and embedding too",
    ),
    Contender(
        SHIPPED,
        RUNTIME,
        bundle("int4-fast", "cpu-int4-fast"),
        "4 bits, block 64, zero points; head 8 bits",
    ),
)
