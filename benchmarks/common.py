"""What the measurements share: their conditions, timed commands, environments, and workers that take turns."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WORKERS = ROOT / "benchmarks" / "workers"
_TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds: the unit of the times in /proc


def conditions(threads: int) -> dict[str, Any]:
    """The machine, its software and its load, as every file of results has them."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    flags = next(value for key, value in fields.items() if key.strip() == "flags").split()
    wanted = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
    return {
        "date": date.today().isoformat(),
        "cpu": next(value.strip() for key, value in fields.items() if key.strip() == "model name"),
        "instruction_sets": [flag for flag in wanted if flag in flags],
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 1e-9, 1),
        "threads": threads,
        "python": platform.python_version(),
        "onnxruntime": importlib.metadata.version("onnxruntime"),
        "torch": importlib.metadata.version("torch"),
        "load_average_before": list(os.getloadavg()),
    }


def write_results(results: Mapping[str, Any], path: Path) -> None:
    """As every file in benchmarks/results is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def timed(command: Sequence[str], log: Path, **kwargs: Any) -> dict[str, float]:
    """Run ``command`` under GNU time: wall seconds and peak resident MB, mapped pages included."""
    report = log.with_suffix(".time")
    with log.open("a") as out:
        out.write(f"$ {' '.join(command)}\n")
        out.flush()
        subprocess.run(
            ["/usr/bin/time", "-f", "%e %M", "-o", str(report), *command], check=True, stdout=out, stderr=out, **kwargs
        )
    seconds, kilobytes = report.read_text().split()[-2:]
    return {"seconds": float(seconds), "peak_resident_mb": float(kilobytes) * 1.024e-3}


def make_checkpoint(folder: Path) -> None:
    """The random 2 B checkpoint at ``folder``, unless one is there."""
    if not (folder / "model.safetensors").exists():
        script = [sys.executable, str(ROOT / "benchmarks/random_checkpoint.py"), str(folder)]
        subprocess.run(script, check=True)


def median(runs: Sequence[Mapping[str, Any]], *keys: str) -> float:
    """The median over ``runs`` of the number at ``keys``."""

    def value(run: Any) -> float:
        for key in keys:
            run = run[key]
        return float(run)

    return statistics.median(value(run) for run in runs)


@dataclass(frozen=True)
class Environment:
    """A virtual environment of a peer's own. ``steps`` are the arguments of ``pip install``, in order.

    ``variables`` are set for pip: what a package's build is told. An environment without steps is the project's own.
    """

    name: str
    steps: tuple[tuple[str, ...], ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    def python(self, work: Path) -> str:
        return str(self._folder(work) / "bin/python") if self.steps else sys.executable

    def prepare(self, work: Path) -> None:
        """Install what ``steps`` say under ``work``, unless the very same is there."""
        folder = self._folder(work)
        done, wanted = folder / "done", json.dumps([self.steps, dict(self.variables)])
        if not self.steps or (done.exists() and done.read_text() == wanted):
            return
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        for step in self.steps:
            command = [self.python(work), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *step]
            with (work / f"{folder.name}.log").open("a") as log:
                subprocess.run(command, check=True, stdout=log, stderr=log, env=os.environ | self.variables)
        done.write_text(wanted)

    def versions(self, work: Path) -> dict[str, str]:
        """Of the packages that ``steps`` name."""
        words = {word for step in self.steps for word in step}
        names = sorted(re.split(r"[=~<>]", word)[0] for word in words if re.match(r"[a-z][\w-]+([=~<>].*)?$", word))
        code = "import importlib.metadata as m, sys, json; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
        output = subprocess.run([self.python(work), "-c", code, *names], check=True, capture_output=True).stdout
        versions: dict[str, str] = json.loads(output)
        return versions

    def _folder(self, work: Path) -> Path:
        return work / f"venv-{self.name}"


@dataclass(frozen=True)
class Answer:
    """One prompt and its greedy tokens, as a worker measured them (workers/serving.py)."""

    prompt: int
    prefill: float  # seconds
    steps: list[float]  # seconds
    tokens: list[int]
    memory_mb: dict[str, float]

    def speed(self) -> dict[str, float]:
        return {
            "prefill_tokens_per_second": self.prompt / self.prefill,
            "decode_ms_per_token": 1e3 * statistics.median(self.steps),
        }


class Worker:
    """A process that holds one model and measures on request, so that runtimes can take turns.

    Only one is asked at a time. What it prints to standard error goes to ``log``.
    """

    def __init__(
        self, python: str, script: str, path: Path, threads: int, context: int,
        settings: Mapping[str, Any] | None = None, log: Path = Path(os.devnull),
    ) -> None:  # fmt: skip
        self.log = log
        command = [python, str(WORKERS / script), str(path), str(threads), str(context), json.dumps(settings or {})]
        self.started = time.perf_counter()
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.ready = self._read()
        #: Seconds from the start of the process until it could take its first token.
        self.load_seconds = time.perf_counter() - self.started

    def ask(self, ids: Sequence[int], new: int) -> Answer:
        """Let the worker take the prompt ``ids`` and ``new`` steps after it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"ids": list(ids), "new": new}) + "\n")
        self.process.stdin.flush()
        return Answer(len(ids), **self._read())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def cpu_seconds(self) -> float:
        """Processor time that the process has taken, all its threads together."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * _TICK

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise RuntimeError(f"a worker ended with {self.process.returncode}: {self.last_words()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.is_file() else []
        return lines[-1] if lines else f"it said nothing ({self.log})"


def busy_seconds() -> float:
    """Processor time that was taken on this machine, by whomever, another guest of its host among them."""
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) * _TICK


def digest(text: str) -> str:
    """Eight digits that change with ``text``: for names of files."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
