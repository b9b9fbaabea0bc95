"""Measure CUDA: ours beside onnxruntime-genai and transformers, against what the GPU allows, in one run.

    python benchmarks/cuda_run.py                              # all of it: about 5 minutes on an H200 with 16 cores
    python benchmarks/cuda_run.py --parts steps batches        # some of it; models that are there are not made anew
    python benchmarks/cuda_run.py --parts show                 # the tables of the results that are there

A random checkpoint in the shapes of kyutai/helium-1-preview-2b is exported as cuda-fp16, cuda-bf16 and
benchmarks/cuda_int4.toml, and built by onnxruntime-genai's own builder, where that package is. The parts:

prepare  checkpoint, exports, builder: beside each other, before anything is timed; about 2 minutes
limits   bandwidth of memory, matrix units, clocks; measured again after steps and batches; 10 seconds
steps    prefill and decode at batch 1, all contenders by turns; a minute to load and compile, 15 seconds a round
kernels  what runs on the GPU in one step; half a minute
batches  1 to 256 rows; a minute and a half

Each contender has a process of its own, and one computes at a time. What fails is written down as its error, and the
rest goes on; results are written after every part. `pip install 'helium-onnx[cuda,export]' transformers
onnxruntime-genai-cuda==0.18.0` is what it takes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import traceback
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from common import ROOT
from cuda_bench import parts
from cuda_bench.budget import Budget, OutOfTimeError
from cuda_bench.contenders import CONTENDERS
from cuda_bench.run import Run
from cuda_tables import show

PARTS = ("prepare", "limits", "steps", "kernels", "batches")
RESULTS = ROOT / "benchmarks/results/cuda.json"


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=(*PARTS, "show"), help="default: all but show")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"default: {RESULTS.relative_to(ROOT)}")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "out/cuda", help="models and logs (25 GB); default: out/cuda"
    )
    parser.add_argument("--checkpoint", type=Path, help="default: h2b in --work, made if it is not there")
    parser.add_argument("--only", nargs="+", default=[""], help="contenders whose name has one of these in it")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--steps", type=int, default=96, help="decode steps that count, of a visit; default: 96")
    parser.add_argument("--context", type=int, default=2304, help="room for keys and values; default: 2304")
    parser.add_argument("--minutes", type=float, default=9.0, help="leave out what does not fit; default: 9")
    parser.add_argument("--again", action="store_true", help="export and build anew")
    parser.add_argument("--device", default="cuda", help="of PyTorch: checkpoint, limits, transformers; default: cuda")
    return parser


def host() -> dict[str, Any]:
    """The machine around the GPU; what is in it, the part limits says."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    names = [line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")]
    driver = Path("/proc/driver/nvidia/version")
    return {
        "date": date.today().isoformat(),
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "kernel_driver": driver.read_text(errors="replace").splitlines()[0] if driver.is_file() else None,
        "load_average_before": list(os.getloadavg()),
    }


def run_parts(run: Run, chosen: dict[str, Callable[[], Any]]) -> None:
    """Each part, its seconds and, where it ended early, why."""
    for name, part in chosen.items():
        began = run.budget.spent
        run.say(f"part {name}")
        try:
            part()
        except OutOfTimeError as error:
            run.results.setdefault("ended_early", {})[name] = str(error)
            run.say(f"{name}: {error}")
        except Exception as error:
            traceback.print_exc()
            run.results.setdefault("ended_early", {})[name] = f"{type(error).__name__}: {error}"
        if name in ("steps", "batches"):
            run.measure_limits(f"after {name}")
        run.results.setdefault("part_seconds", {})[name] = run.budget.spent - began
        run.say(f"{name} took {run.budget.spent - began:.0f} s")
        run.keep("conditions", run.results["conditions"])
    run.results["conditions"]["load_average_after"] = list(os.getloadavg())
    run.keep("conditions", run.results["conditions"])


def main() -> None:
    args = arguments().parse_args()
    results: dict[str, Any] = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    if "show" in args.parts:
        print(show(results))
        return
    work: Path = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if "limits" in args.parts:
        results.pop("limits", None)
    run = Run(
        work=work,
        checkpoint=(args.checkpoint or work / "h2b").resolve(),
        out=args.out,
        budget=Budget(args.minutes),
        rounds=args.rounds,
        steps=args.steps,
        context=args.context,
        device=args.device,
        contenders=tuple(c for c in CONTENDERS if any(word.lower() in c.name.lower() for word in args.only)),
        results={**results, "conditions": {**results.get("conditions", {}), **host()}, "ended_early": {}},
    )
    every: dict[str, Callable[[], Any]] = {
        "prepare": partial(parts.prepare, run, again=args.again),
        "limits": partial(run.measure_limits, "before"),
        "steps": partial(parts.steps, run),
        "kernels": partial(parts.kernels, run),
        "batches": partial(parts.batches, run),
    }
    try:
        run_parts(run, {name: every[name] for name in PARTS if name in args.parts})
    finally:
        run.close(limits=True)
    run.results["config"] = run.config if (run.checkpoint / "config.json").exists() else {}
    run.keep("config", run.results["config"])
    print(show(run.results))


if __name__ == "__main__":
    main()
