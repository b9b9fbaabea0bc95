"""What every worker does: load one model, then measure on request. One JSON object a line, in and out.

    python WORKER.py MODEL THREADS CONTEXT [SETTINGS as JSON]

says ``{"ready": true, ...}`` once the model could take its first token, and answers
``{"ids": [...], "new": n}`` with the seconds of the prefill, which gives the first token, those of each of the n steps
that follow, and all the tokens, greedily chosen. Workers run in the environments of several packages, so this module
needs nothing but Python's library.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class Model(Protocol):
    """A loaded model. An attribute ``about``, if it has one, says how it computes, and goes into the results."""

    def generate(self, ids: list[int], new: int, emit: Callable[[int], None]) -> None:
        """Forget what was, take a prompt, and call ``emit`` with ``new + 1`` tokens, each as soon as it is known."""
        ...


class Arguments(NamedTuple):
    """A worker's command line; ``settings`` are the peer's own."""

    path: str
    threads: int
    context: int
    settings: dict[str, Any]


def memory_mb() -> dict[str, float]:
    """Of this process, in MB (1e6): ``private`` is anonymous memory, ``resident`` includes shared pages of files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    kilobytes = {name: int(text.split()[0]) for name, text in fields.items()}
    return {"private": kilobytes["Anonymous"] * 1.024e-3, "resident": kilobytes["Rss"] * 1.024e-3}


def serve(load: Callable[[Arguments], Model]) -> None:
    """Load the model that the command line names, and answer until standard input ends."""
    # Answers go to the real standard output; what libraries print goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**fields: Any) -> None:
        answers.write(json.dumps({**fields, "memory_mb": memory_mb()}) + "\n")
        answers.flush()

    path, threads, context, *rest = sys.argv[1:]
    model = load(Arguments(path, int(threads), int(context), json.loads(rest[0]) if rest else {}))
    answer(ready=True, about=getattr(model, "about", ""))
    for line in sys.stdin:
        request = json.loads(line)
        answer(**measured(model, request["ids"], request["new"]))


def measured(model: Model, ids: list[int], new: int) -> dict[str, Any]:
    tokens: list[int] = []
    times = [time.perf_counter()]

    def emit(token: int) -> None:
        times.append(time.perf_counter())
        tokens.append(token)

    model.generate(ids, new, emit)
    assert len(tokens) == new + 1, f"{len(tokens)} tokens instead of {new + 1}"
    prefill, *steps = (after - before for before, after in itertools.pairwise(times))
    return {"prefill": prefill, "steps": steps, "tokens": tokens}
