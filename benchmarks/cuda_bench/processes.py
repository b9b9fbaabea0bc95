"""Processes that are waited for with a limit: workers that hold a model, and builds that run beside each other."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import ROOT

SCRIPTS = ROOT / "benchmarks" / "cuda_workers"
_WORDS = 1500  # characters of an error that go into the results
_POLL = 0.2  # seconds


class WorkerError(Exception):
    """A worker answered with an error, ended, or did not answer in time."""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process' environment with the repository on Python's path: the package need not be installed."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", **(extra or {})}


class Worker:
    """A process that holds one model and answers requests (cuda_workers/cuda_serving.py). Ask one at a time.

    It starts at once and loads by itself: ``ready`` waits for it, so that several can load beside each other.
    """

    def __init__(self, script: str, settings: Mapping[str, Any], log: Path) -> None:
        self.log = log
        self._answers: queue.Queue[str | None] = queue.Queue()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(SCRIPTS / script), json.dumps(dict(settings))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment(),
            )  # fmt: skip
        self.started = time.monotonic()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def ready(self, timeout: float) -> dict[str, Any]:
        """What the worker says of itself once it is loaded."""
        said: dict[str, Any] = self._answer(timeout)["ready"]
        return said

    def ask(self, do: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        """The answer to one request. Raises WorkerError; after a timeout the process is killed."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise WorkerError(self._ended()) from None
        return self._answer(timeout)

    def close(self) -> None:
        """End it, whatever it does."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(10)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
        self._process.wait()
        self._listener.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _answer(self, timeout: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=timeout)
        except queue.Empty:
            self._process.kill()
            raise WorkerError(f"no answer in {timeout:.0f} s; {self._last_words()}") from None
        if line is None:
            self._answers.put(None)
            raise WorkerError(self._ended())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(str(answer["error"])[:_WORDS])
        return answer

    def _ended(self) -> str:
        code = self._process.wait()
        return f"the worker ended with {code}; {self._last_words()}"

    def _last_words(self) -> str:
        return last_words(self.log)


def last_words(log: Path) -> str:
    """The last lines of a log."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    return "\n".join(lines[-6:])[-_WORDS:] if lines else f"it said nothing ({log})"


def run_beside(
    commands: Mapping[str, Sequence[str]], folder: Path, timeout: float, extra: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Run all ``commands`` at once: of each its seconds, or its error. What is not done after ``timeout`` is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    running: dict[str, subprocess.Popen[bytes]] = {}
    began = time.monotonic()
    for name, command in commands.items():
        with (folder / f"{name}.log").open("w") as said:
            running[name] = subprocess.Popen(
                list(command), stdout=said, stderr=said, stdin=subprocess.DEVNULL, env=environment(extra)
            )
    while running:
        for name, process in list(running.items()):
            seconds = time.monotonic() - began
            code = process.poll()
            if code is None and seconds < timeout:
                continue
            if code is None:
                process.kill()
                process.wait()
            del running[name]
            log = folder / f"{name}.log"
            if code == 0:
                found[name] = {"seconds": seconds}
            else:
                reason = f"not done after {timeout:.0f} s" if code is None else f"ended with {code}"
                found[name] = {"failed": f"{reason}; {last_words(log)}"}
            print(f"{name}: {found[name].get('failed', f'{seconds:.0f} s')}", flush=True)
        time.sleep(_POLL)
    return found
