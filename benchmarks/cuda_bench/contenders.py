"""Who is measured on CUDA, and how each one's model is made: rows of data."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import ROOT

from cuda_bench.counting import Storage

HALF, INT4 = Storage(), Storage(bits=4, block_size=32)
INT4_KV8 = Storage(bits=4, block_size=32, cache_bits=8)
INT4_LAYOUT = Storage(bits=4, block_size=64, zeros=True, head_block_size=32)


@dataclass(frozen=True)
class Build:
    """A model made of the checkpoint: ``command`` takes the checkpoint's folder and what is to be made.

    ``package`` is what must be importable for it. ``files`` are the patterns of what a runtime reads of it.
    """

    name: str
    command: Callable[[Path, Path], list[str]]
    package: str | None = None
    files: tuple[str, ...] = ("onnx/*",)

    def absent(self) -> str | None:
        """Why it cannot be made here, or None."""
        if self.package is None or importlib.util.find_spec(self.package) is not None:
            return None
        return f"absent: there is no package {self.package} on Python's path"

    def path(self, work: Path) -> Path:
        return work / self.name

    def mark(self, work: Path) -> Path:
        """A file that is there when the model is whole."""
        return work / f"{self.name}.built"

    def bytes(self, work: Path) -> int:
        folder = self.path(work)
        return sum(path.stat().st_size for pattern in self.files for path in folder.glob(pattern) if path.is_file())


def export(recipe: str) -> Callable[[Path, Path], list[str]]:
    """By helium-onnx; ``recipe`` is a name or a path."""

    def command(checkpoint: Path, out: Path) -> list[str]:
        options = ["--recipe", recipe, "--quiet", "--force"]
        return [sys.executable, "-m", "helium_onnx", "export", str(checkpoint), str(out), *options]

    return command


def genai(precision: str, *options: str) -> Callable[[Path, Path], list[str]]:
    """By onnxruntime-genai's builder, which knows no Helium, but interleaved rotary embedding as Ernie 4.5's."""

    def command(_checkpoint: Path, out: Path) -> list[str]:
        source = out.parent / "as-ernie4_5"
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(out)]
        builder += ["-p", precision, "-e", "cuda", "-c", f"{out}-cache"]
        return [*builder, "--extra_options", "enable_cuda_graph=1", *options]

    return command


def relabel(checkpoint: Path, out: Path) -> None:
    """The checkpoint under the name of an architecture that the builder knows: the same files, another config.json."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for path in checkpoint.iterdir():
        (out / path.name).symlink_to(path.resolve())
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    config |= {"architectures": ["Ernie4_5ForCausalLM"], "model_type": "ernie4_5", "use_bias": False}
    (out / "config.json").unlink()
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")


BUILDS: dict[str, Build] = {
    build.name: build
    for build in (
        Build("fp16", export("cuda-fp16")),
        Build("bf16", export("cuda-bf16")),
        Build("int4", export(str(ROOT / "benchmarks/cuda_int4.toml"))),
        Build("int4-kv8", export(str(ROOT / "benchmarks/cuda_int4_kv8.toml"))),
        Build("int4-layout", export(str(ROOT / "benchmarks/cuda_int4_layout.toml"))),
        Build("genai-fp16", genai("fp16"), "onnxruntime_genai", ("model.onnx*",)),
        # Symmetric, the head too, accuracy level 0: the builder's defaults for CUDA.
        Build("genai-int4", genai("int4", "block_size=32"), "onnxruntime_genai", ("model.onnx*",)),
    )
}


@dataclass(frozen=True)
class Contender:
    """One row of the tables.

    ``build`` is a key of BUILDS, or None for the checkpoint itself. ``hows`` are the ways of decoding after 512
    tokens; the first of them is measured after all ``pasts``, and is the one that is compared. ``equal`` is the row of
    ours with weights of the same kind. ``context`` is the room for keys and values, where another than the run's is
    fair. ``whole``: ``generate`` is measured too, text and all.
    """

    name: str
    script: str
    build: str | None
    storage: Storage
    settings: Mapping[str, Any] = field(default_factory=dict)
    hows: tuple[str, ...] = ("greedy",)
    pasts: tuple[int, ...] = (128, 512, 2048)
    prefills: tuple[int, ...] = (512, 2048)
    equal: str | None = None
    context: int | None = None
    whole: bool = False

    @property
    def ours(self) -> bool:
        return self.script == OURS


OURS = "cuda_ours.py"
#: A step in flight; logits on the host at each step; the same, sampled on the host.
OUR_HOWS = ("greedy", "run", "sample")


def ours(build: str, storage: Storage) -> tuple[Contender, Contender]:
    """Our own kernels (prefill is ONNX Runtime's in any case), and ONNX Runtime's alone."""
    return (
        Contender(f"helium-onnx {build}", OURS, build, storage, {"kernels": "native"}, OUR_HOWS, whole=True),
        Contender(
            f"helium-onnx {build}, ONNX Runtime's kernels", OURS, build, storage, {"kernels": "onnxruntime"},
            ("greedy", "run"), prefills=(),
        ),
    )  # fmt: skip


CONTENDERS: tuple[Contender, ...] = (
    *ours("fp16", HALF),
    *ours("bf16", HALF),
    *ours("int4", INT4),
    Contender("helium-onnx int4, int8 keys and values", OURS, "int4-kv8", INT4_KV8, {"kernels": "native"}),
    Contender("helium-onnx int4 in the layout of cuda-int4", OURS, "int4-layout", INT4_LAYOUT, {"kernels": "native"}),
    Contender(
        "onnxruntime-genai fp16", "cuda_genai.py", "genai-fp16", HALF, {"graph": True}, equal="helium-onnx fp16"
    ),
    Contender(
        "onnxruntime-genai int4", "cuda_genai.py", "genai-int4", INT4, {"graph": True}, equal="helium-onnx int4"
    ),
    Contender(
        "transformers bf16, compiled", "cuda_hf.py", None, HALF, {"dtype": "bfloat16", "mode": "reduce-overhead"},
        ("run", "greedy"), (128, 512), (512,), "helium-onnx bf16",
        context=768,  # its attention reads the whole static cache
    ),
)  # fmt: skip
#: Rows of a batch, those that matter most first: time may run out.
BATCHES = (1, 64, 8, 256, 16, 32, 128, 4, 2)
BATCH_BUILDS = ("fp16", "bf16", "int4", "int4-kv8")
BATCH_PAST = 512
