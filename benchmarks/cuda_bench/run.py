"""One run: its folder, its time, its results, and the workers that are open."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import ROOT, write_results

from cuda_bench.budget import Budget
from cuda_bench.contenders import BUILDS, CONTENDERS, Contender
from cuda_bench.processes import Worker, WorkerError, run_beside

#: Seconds that a worker may take to load, and to answer.
LOAD, ANSWER = 180, 60
#: Of the limits, where there is no GPU to fill: for a trial of the script.
_SMALL = {"copy_bytes": 1 << 24, "size": 256}


@dataclass
class Run:
    """What all parts share. ``keep`` writes the results: whatever happens next, they are there."""

    work: Path
    checkpoint: Path
    out: Path
    budget: Budget
    rounds: int
    steps: int
    context: int
    contenders: tuple[Contender, ...] = CONTENDERS
    results: dict[str, Any] = field(default_factory=dict)
    open: dict[str, Worker] = field(default_factory=dict)
    limits: Worker | None = None
    device: str = "cuda"

    @property
    def config(self) -> dict[str, Any]:
        """The checkpoint's config.json."""
        found: dict[str, Any] = json.loads((self.checkpoint / "config.json").read_text(encoding="utf-8"))
        return found

    def keep(self, part: str, found: Any) -> None:
        """Write the results with those of ``part``."""
        self.results[part] = found
        write_results(self.results, self.out)

    def say(self, text: str) -> None:
        """A line of progress, with the seconds since the start."""
        print(f"[{self.budget.spent:5.0f} s] {text}", flush=True)

    def worker(self, contender: Contender, context: int | None = None) -> Worker:
        """Start a contender's worker; it loads by itself. Raises WorkerError where its model is not there."""
        path = self.checkpoint
        if contender.build is not None:
            build = BUILDS[contender.build]
            if not build.mark(self.work).exists():
                raise WorkerError(build.absent() or f"{build.name} was not made: see the part prepare")
            path = build.path(self.work)
        settings = {
            "path": str(path),
            "device": self.device,
            "context": context or contender.context or self.context,
            **contender.settings,
        }
        return Worker(contender.script, settings, self.work / "logs" / f"{slug(contender.name)}.log")

    def start(self, contenders: Iterable[Contender]) -> dict[str, Any]:
        """Open the workers that are not; returns what each says of itself, or ``{"failed": ...}``.

        The first loads alone, since it may compile and keep what the others then find; the others beside each other.
        """
        said: dict[str, Any] = {}
        starting: dict[str, Worker] = {}
        for contender in contenders:
            if contender.name in self.open:
                continue
            try:
                starting[contender.name] = self.worker(contender)
            except WorkerError as error:
                said[contender.name] = {"failed": str(error)}
                continue
            if len(starting) == 1:
                self._wait(contender.name, starting, said)
        for name in starting:
            if name not in said:
                self._wait(name, starting, said)
        return said

    def ask(self, name: str, do: str, **arguments: Any) -> dict[str, Any]:
        """Ask an open worker; an error is ``{"failed": ...}``."""
        try:
            return self.open[name].ask(do, self.budget.at_most(ANSWER), **arguments)
        except WorkerError as error:
            self.say(f"{name}: {do} {arguments}: {str(error).splitlines()[0][:200]}")
            return {"failed": str(error)}

    def measure_limits(self, when: str) -> dict[str, Any]:
        """What the GPU gives now; kept in the results beside earlier measurements."""
        try:
            if self.limits is None:
                settings = {"device": self.device, **({} if self.device == "cuda" else _SMALL)}
                self.limits = Worker("cuda_limits.py", settings, self.work / "logs" / "limits.log")
                about = self.limits.ready(self.budget.at_most(LOAD))
                self.results.setdefault("conditions", {}).update(about)
            found = {"when": when, **self.limits.ask("measure", self.budget.at_most(ANSWER), repeats=15)}
        except WorkerError as error:
            if self.limits is not None:
                self.limits.close()
                self.limits = None
            found = {"when": when, "failed": str(error)}
        self.keep("limits", [*self.results.get("limits", []), found])
        self.say(f"limits {when}: {json.dumps({k: v for k, v in found.items() if k != 'clocks'})}")
        return found

    def close(self, *, limits: bool = False) -> None:
        """End the workers."""
        for worker in self.open.values():
            worker.close()
        self.open.clear()
        if limits and self.limits is not None:
            self.limits.close()
            self.limits = None

    def _wait(self, name: str, starting: Mapping[str, Worker], said: dict[str, Any]) -> None:
        try:
            said[name] = starting[name].ready(self.budget.at_most(LOAD))
            self.open[name] = starting[name]
            self.say(f"{name}: ready after {time.monotonic() - starting[name].started:.0f} s")
        except WorkerError as error:
            starting[name].close()
            said[name] = {"failed": str(error)}
            self.say(f"{name}: {error}")


def slug(name: str) -> str:
    """A name as part of a file's name."""
    return "".join(c if c.isalnum() else "-" for c in name)


def make_checkpoint(run: Run) -> dict[str, Any]:
    """The random checkpoint, unless one is there. Raises WorkerError."""
    if (run.checkpoint / "model.safetensors").exists():
        return {"seconds": 0.0, "there": True}
    script = ROOT / "benchmarks/random_checkpoint.py"
    command = [sys.executable, str(script), str(run.checkpoint), "--device", run.device]
    found = run_beside({"checkpoint": command}, run.work / "logs", run.budget.at_most(120), {})["checkpoint"]
    if "failed" in found:
        raise WorkerError(str(found["failed"]))
    return found
