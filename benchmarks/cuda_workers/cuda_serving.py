"""What every worker of benchmarks/cuda_run.py does: load one model, then answer. One JSON object a line, in and out.

    python WORKER.py '{"path": ..., "context": ...}'

says ``{"ready": {...}}`` with what the model says of itself (``about``), and answers ``{"do": "prefill", ...}`` with
what the model's method of that name returns. An error of a request is its answer: ``{"error": "..."}``; the next
request may do better.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any


def serve(load: Callable[[dict[str, Any]], Any]) -> None:
    """Load what the command line asks for, and answer until standard input ends."""
    # Answers go to the real standard output; what libraries print goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(fields: dict[str, Any]) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    began = time.perf_counter()
    try:
        model = load(json.loads(sys.argv[1]))
    except BaseException as error:
        answer({"error": described(error)})
        raise
    about = {"seconds": time.perf_counter() - began, "versions": versions(), **getattr(model, "about", {})}
    answer({"ready": about})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            found = getattr(model, request.pop("do"))(**request)
        except Exception as error:
            traceback.print_exc()
            found = {"error": described(error)}
        answer(found)


def versions() -> dict[str, str]:
    """Of the packages that are loaded."""
    names = ("onnxruntime", "onnxruntime_genai", "torch", "transformers", "numpy", "helium_onnx")
    found = {name: getattr(sys.modules.get(name), "__version__", None) for name in names}
    return {"python": platform.python_version(), **{name: str(value) for name, value in found.items() if value}}


def described(error: BaseException) -> str:
    """An error in one text."""
    return f"{type(error).__name__}: {error}"


def random_ids(vocab_size: int, rows: int, tokens: int, turn: int) -> list[list[int]]:
    """The same for every contender of a turn, other ones in the next; no control tokens. Needs no numpy."""
    state = (turn * 0x9E3779B97F4A7C15 + tokens) & (2**64 - 1)
    found = []
    for _ in range(rows):
        row = []
        for _ in range(tokens):
            state = (state * 6364136223846793005 + 1442695040888963407) & (2**64 - 1)
            row.append(4 + (state >> 33) % (vocab_size - 4))
        found.append(row)
    return found


class Clock:
    """Seconds of steps, from each to the next: ``mark`` when a token is known."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def mark(self) -> None:
        self._times.append(time.perf_counter())

    def figures(self, warm: int) -> dict[str, Any]:
        """After ``warm`` steps: all seconds together, how many steps, and the seconds of each."""
        times = self._times[warm:]
        steps = [after - before for before, after in itertools.pairwise(times)]
        return {"seconds": times[-1] - times[0], "steps": len(steps), "each": steps}
