"""Measure the main job on a 2 B model: export, load, prefill and decode, beside onnxruntime-genai.

    python benchmarks/main_job.py                    # all of it: about 20 minutes and 25 GB of disk
    python benchmarks/main_job.py export load        # some of it
    python benchmarks/main_job.py speed --no-genai   # without the peer

A random checkpoint in the shapes of helium-1-preview-2b (benchmarks/random_checkpoint.py) is made in ``--work`` if it
is not there. The peer is installed in an environment of its own there, and gets its own builder's int4 of the same
weights (as ``ernie4_5``: the one architecture of its builder with interleaved rotary embedding). Results go to
``benchmarks/results/main_job.json`` with their conditions.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, WORKERS, Worker, conditions, make_checkpoint, median, timed, write_results
from contenders import genai, ours

PROMPT, NEW, ROUNDS, CONTEXT = 128, 32, 7, 2048


def measure_export(work: Path, rounds: int = 3) -> dict[str, Any]:
    runs = []
    for _ in range(rounds):
        command = [sys.executable, "-m", "helium_onnx", "export", str(work / "h2b"), str(work / "int4"), "--force"]
        runs.append(timed([*command, "--recipe", "cpu-int4"], work / "export.log"))
    size = sum(path.stat().st_size for path in (work / "int4").rglob("*") if path.is_file())
    return {"runs": runs, "bundle_bytes": size}


def measure_load(work: Path, rounds: int = 7) -> dict[str, Any]:
    def once(kind: str) -> dict[str, Any]:
        command = [sys.executable, str(WORKERS / "load.py"), str(work / "int4"), kind]
        result: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        return result

    shutil.rmtree(Path.home() / ".cache/helium-onnx/prepacked", ignore_errors=True)
    start = time.perf_counter()
    once("cache")
    first = time.perf_counter() - start
    pairs = [(once("cache"), once("plain")) for _ in range(rounds)]
    return {
        "first_load_builds_cache_seconds": first,
        "cache": [cached for cached, _ in pairs],
        "no_cache": [plain for _, plain in pairs],
    }


def measure_speed(work: Path, threads: int, *, with_genai: bool) -> dict[str, Any]:
    ids = np.random.default_rng(0).integers(4, 40000, PROMPT).tolist()
    report: dict[str, Any] = {"prompt": PROMPT, "new": NEW, "rounds": ROUNDS, "runs": {}}
    workers = {"helium-onnx cpu-int4": Worker(sys.executable, "ours.py", work / "int4", threads, CONTEXT)}
    if with_genai:
        equal = next(row for row in ours.ROWS if row.name == ours.BLOCK_64)
        equal.weights.make(sys.executable, work / "h2b", work)
        workers["helium-onnx, the peer's block 64"] = Worker(
            sys.executable, "ours.py", equal.weights.path(work / "h2b", work), threads, CONTEXT
        )
        genai.RUNTIME.environment.prepare(work)
        python = genai.RUNTIME.environment.python(work)
        for block, row in zip(genai.BLOCKS, genai.ROWS, strict=True):
            report[f"genai_build_block_{block}"] = row.weights.make(python, work / "h2b", work)
            path = row.weights.path(work / "h2b", work)
            workers[f"onnxruntime-genai block {block}"] = Worker(python, "genai.py", path, threads, CONTEXT)
    for worker in workers.values():
        worker.ask(ids, NEW)  # warm up
    for _ in range(ROUNDS):
        for name, worker in workers.items():
            report["runs"].setdefault(name, []).append(worker.ask(ids, NEW).speed())
    for worker in workers.values():
        worker.close()
    return report


def show(results: dict[str, Any]) -> None:
    if "export" in results:
        runs = results["export"]["runs"]
        print(
            f"export: {median(runs, 'seconds'):.1f} s, peak {median(runs, 'peak_resident_mb'):.0f} MB resident, "
            f"bundle {results['export']['bundle_bytes'] / 1e9:.3f} GB (medians of {len(runs)})"
        )
    if "load" in results:
        load = results["load"]
        print(f"first load, builds the cache: {load['first_load_builds_cache_seconds']:.1f} s")
        for kind in ("cache", "no_cache"):
            runs = load[kind]
            print(
                f"load, {kind}: {median(runs, 'to_first_token_start_seconds'):.2f} s from process start to first "
                f"token's start, both graphs {median(runs, 'both_graphs_seconds'):.2f} s, "
                f"private {median(runs, 'both_graphs_mb', 'private'):.0f} MB"
            )
    if "speed" in results:
        runs_of = results["speed"]["runs"]
        for name, runs in runs_of.items():
            print(
                f"{name}: prefill {median(runs, 'prefill_tokens_per_second'):.1f} tokens/s, decode "
                f"{median(runs, 'decode_ms_per_token'):.1f} ms a token"
            )
        for ours in (name for name in runs_of if name.startswith("helium-onnx")):
            for peer in (name for name in runs_of if not name.startswith("helium-onnx")):
                pairs = list(zip(runs_of[ours], runs_of[peer], strict=True))
                decode = statistics.median(b["decode_ms_per_token"] / a["decode_ms_per_token"] for a, b in pairs)
                rate = "prefill_tokens_per_second"
                prefill = statistics.median(a[rate] / b[rate] for a, b in pairs)
                print(f"{ours} / {peer}: prefill {prefill:.2f} x, decode {decode:.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the main job on a 2 B model.")
    parser.add_argument("parts", nargs="*", default=["export", "load", "speed"], help="export, load, speed")
    parser.add_argument("--work", type=Path, default=Path("out/bench"))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-genai", action="store_true")
    args = parser.parse_args()
    work: Path = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    make_checkpoint(work / "h2b")
    path = ROOT / "benchmarks/results/main_job.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for part in args.parts:
        results[f"{part}_conditions"] = conditions(args.threads)
    if "export" in args.parts:
        results["export"] = measure_export(work)
    if "load" in args.parts:
        results["load"] = measure_load(work)
    if "speed" in args.parts:
        results["speed"] = measure_speed(work, args.threads, with_genai=not args.no_genai)
    show(results)
    path.parent.mkdir(exist_ok=True)
    write_results(results, path)


if __name__ == "__main__":
    main()
