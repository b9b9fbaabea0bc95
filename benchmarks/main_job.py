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
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
WORKERS = ROOT / "benchmarks" / "workers"
PROMPT, NEW, ROUNDS, CONTEXT = 128, 32, 7, 2048


def conditions(threads: int) -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    flags = next(value for key, value in fields.items() if key.strip() == "flags").split()
    wanted = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8")
    return {
        "date": date.today().isoformat(),
        "cpu": next(value.strip() for key, value in fields.items() if key.strip() == "model name"),
        "instruction_sets": [flag for flag in wanted if flag in flags],
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "onnxruntime": importlib.metadata.version("onnxruntime"),
        "torch": importlib.metadata.version("torch"),
        "load_average_before": list(os.getloadavg()),
    }


def timed(command: list[str], log: Path, **kwargs: Any) -> dict[str, float]:
    """Run ``command`` under GNU time: wall seconds and peak resident MB, mapped pages included."""
    report = log.with_suffix(".time")
    with log.open("w") as out:
        subprocess.run(
            ["/usr/bin/time", "-f", "%e %M", "-o", str(report), *command], check=True, stdout=out, stderr=out, **kwargs
        )
    seconds, kilobytes = report.read_text().split()[-2:]
    return {"seconds": float(seconds), "peak_resident_mb": float(kilobytes) * 1.024e-3}


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


class Worker:
    """A process that holds one model and measures on request, so that runtimes can take turns."""

    def __init__(self, python: str, script: str, *args: str) -> None:
        self.process = subprocess.Popen(
            [python, str(WORKERS / script), *args],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self._read() == {"ready": True}

    def _read(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, ids: list[int]) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"ids": ids, "new": NEW}) + "\n")
        self.process.stdin.flush()
        answer = self._read()
        return {
            "prefill_tokens_per_second": len(ids) / answer["prefill"],
            "decode_ms_per_token": 1e3 * statistics.median(answer["steps"]),
        }

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def genai_model(work: Path, block_size: int) -> dict[str, Any]:
    """onnxruntime-genai's own int4 of the checkpoint, in its own environment; what making it took."""
    venv, out = work / "venv-genai", work / f"genai-int4-{block_size}"
    if not (venv / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        pip = [str(venv / "bin/pip"), "install", "--quiet", "--constraint", str(ROOT / "constraints.txt")]
        subprocess.run([*pip, "torch"], check=True)
        subprocess.run([*pip, "onnxruntime-genai==0.18.0", "onnxruntime", "transformers", "onnx-ir"], check=True)
        (venv / "done").touch()
    if not (out / "built.json").exists():
        relabelled = work / "h2b-ernie"
        shutil.rmtree(relabelled, ignore_errors=True)
        relabelled.mkdir()
        for path in (work / "h2b").iterdir():
            (relabelled / path.name).symlink_to(path)
        config = json.loads((work / "h2b/config.json").read_text())
        config |= {"architectures": ["Ernie4_5ForCausalLM"], "model_type": "ernie4_5", "use_bias": False}
        (relabelled / "config.json").unlink()
        (relabelled / "config.json").write_text(json.dumps(config))
        command = [str(venv / "bin/python"), "-m", "onnxruntime_genai.models.builder", "-i", str(relabelled)]
        command += ["-o", str(out), "-p", "int4", "-e", "cpu", "-c", str(work / "genai-cache")]
        command += ["--extra_options", f"block_size={block_size}", "accuracy_level=4"]
        (out.parent).mkdir(exist_ok=True)
        built = timed(command, work / "genai-build.log")
        (out / "built.json").write_text(json.dumps(built))
    size = sum(path.stat().st_size for path in out.glob("model.onnx*"))
    return {**json.loads((out / "built.json").read_text()), "bytes": size}


def measure_speed(work: Path, threads: int, *, genai: bool) -> dict[str, Any]:
    ids = np.random.default_rng(0).integers(4, 40000, PROMPT).tolist()
    report: dict[str, Any] = {"prompt": PROMPT, "new": NEW, "rounds": ROUNDS, "runs": {}}
    workers = {
        "helium-onnx cpu-int4": Worker(sys.executable, "ours.py", str(work / "int4"), str(threads), str(CONTEXT))
    }
    if genai:
        equal = work / "equal-weights"
        command = [sys.executable, "-m", "helium_onnx", "export", str(work / "h2b"), str(equal), "--force", "--quiet"]
        subprocess.run([*command, "--recipe", str(ROOT / "benchmarks/equal_weights.toml")], check=True)
        workers["helium-onnx, the peer's block 64"] = Worker(
            sys.executable, "ours.py", str(equal), str(threads), str(CONTEXT)
        )
        python = str(work / "venv-genai/bin/python")
        for block in (32, 64):
            report[f"genai_build_block_{block}"] = genai_model(work, block)
            path = str(work / f"genai-int4-{block}")
            workers[f"onnxruntime-genai block {block}"] = Worker(python, "genai.py", path, str(threads), str(CONTEXT))
    for worker in workers.values():
        worker.ask(ids)  # warm up
    for _ in range(ROUNDS):
        for name, worker in workers.items():
            report["runs"].setdefault(name, []).append(worker.ask(ids))
    for worker in workers.values():
        worker.close()
    return report


def median(runs: list[dict[str, Any]], *keys: str) -> float:
    def value(run: Any) -> float:
        for key in keys:
            run = run[key]
        return float(run)

    return statistics.median(value(run) for run in runs)


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
    if not (work / "h2b/model.safetensors").exists():
        script = [sys.executable, str(ROOT / "benchmarks/random_checkpoint.py"), str(work / "h2b")]
        subprocess.run(script, check=True)
    path = ROOT / "benchmarks/results/main_job.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for part in args.parts:
        results[f"{part}_conditions"] = conditions(args.threads)
    if "export" in args.parts:
        results["export"] = measure_export(work)
    if "load" in args.parts:
        results["load"] = measure_load(work)
    if "speed" in args.parts:
        results["speed"] = measure_speed(work, args.threads, genai=not args.no_genai)
    show(results)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
