"""onnxruntime-genai 0.18 with its own builder's int4.

The builder knows no Helium. It builds one exactly as ``Ernie4_5ForCausalLM``, its one architecture with interleaved
rotary embedding; as Llama the result is silently wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import ROOT, Environment

from contenders import ours
from contenders.model import Commands, Contender, Runtime, Weights

_RELABEL = """
import json, pathlib, shutil, sys
source, out = map(pathlib.Path, sys.argv[1:])
shutil.rmtree(out, ignore_errors=True)
out.mkdir(parents=True)
for path in source.iterdir():
    (out / path.name).symlink_to(path)
config = json.loads((source / "config.json").read_text())
config |= {"architectures": ["Ernie4_5ForCausalLM"], "model_type": "ernie4_5", "use_bias": False}
(out / "config.json").unlink()
(out / "config.json").write_text(json.dumps(config))
"""


def relabel(python: str, checkpoint: Path, out: Path) -> list[list[str]]:
    return [[python, "-c", _RELABEL, str(checkpoint), str(out.parent / "as-ernie4_5")]]


def build(precision: str, **options: Any) -> Commands:
    def commands(python: str, _checkpoint: Path, out: Path) -> list[list[str]]:
        command = [python, "-m", "onnxruntime_genai.models.builder", "-i", str(out.parent / "as-ernie4_5")]
        command += ["-o", str(out), "-p", precision, "-e", "cpu", "-c", f"{out}-cache"]
        return [[*command, "--extra_options", *(f"{key}={value}" for key, value in options.items())]]

    return commands


def model(out: str, precision: str, **options: Any) -> Weights:
    return Weights(out, build(precision, **options), relabel, files=("model.onnx*",))


RUNTIME = Runtime(
    "onnxruntime-genai",
    Environment(
        "genai",
        (
            ("--constraint", str(ROOT / "constraints.txt"), "torch==2.13.0"),
            ("--constraint", str(ROOT / "constraints.txt"), "onnxruntime-genai==0.18.0", "onnxruntime", "transformers",
             "onnx-ir"),
        ),
    ),
    "genai.py",
    float32=model("genai-fp32", "fp32", use_gqa="true"),
)  # fmt: skip
BLOCKS = {32: ours.BLOCK_32, 64: ours.BLOCK_64}
ROWS = tuple(
    Contender(
        f"onnxruntime-genai 4 bits/{block}",
        RUNTIME,
        model(f"genai-int4-{block}", "int4", block_size=block, accuracy_level=4),
        f"4 bits, block {block}, symmetric, head too; embedding float32",
        equal,
        # Its default is one thread: the worker sets as many as all have. Chunked prefill is off by default.
        alternatives={"chunk_size 128": {"chunk_size": 128}, "chunk_size 256": {"chunk_size": 256}},
    )
    for block, equal in BLOCKS.items()
)
