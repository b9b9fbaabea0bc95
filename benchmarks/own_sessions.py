"""What settings.py and operators.py share: a bundle driven through its session alone, and the machine beside it."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, conditions
from numpy.typing import NDArray

from helium_onnx.benchmark import machine
from helium_onnx.benchmark.conditions import cache_bytes
from helium_onnx.benchmark.machine import Limits
from helium_onnx.benchmark.measure import Meter
from helium_onnx.bundle import Bundle
from helium_onnx.runtimes.session import Session

RESULTS = ROOT / "benchmarks/results"
#: What ``peers.py prepare`` makes of the random 2.17 B checkpoint.
BUNDLE = ROOT / "out/bench/int4-fast"
_SLEEP = 0.2  # seconds, after which threads that wait in a loop for more work have gone to sleep
_LAST = 4  # steps before those that count: they bind the buffers, and threads awake


def arguments(parser: argparse.ArgumentParser, results: str, rounds: int) -> None:
    """Options that both scripts have."""
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help=f"default: {BUNDLE.relative_to(ROOT)}")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"default: {rounds}")
    parser.add_argument("--json", type=Path, default=RESULTS / results, help=f"default: benchmarks/results/{results}")


def opened(parser: argparse.ArgumentParser, path: Path) -> Bundle:
    """The bundle at ``path``; without one, the command line ends with what to do."""
    if not (path / "helium.json").exists():
        parser.error(f"there is no bundle at {path}: `python benchmarks/peers.py prepare` makes the default one")
    return Bundle.open(path)


def context_of(bundle: Bundle) -> int:
    """Tokens that the model has positions for."""
    return int(bundle.model_config["max_position_embeddings"])


def begun(bundle: Bundle, threads: int) -> dict[str, Any]:
    """What a part of the results begins with: the bundle and the conditions."""
    return {
        "bundle": {
            "name": bundle.path.name,
            "recipe": str(bundle.manifest.recipe.get("name", "")),
            "digest": bundle.digest,
            "bytes": bundle.total_bytes,
        },
        "conditions": {**conditions(threads), "cache_bytes": cache_bytes()},
    }


def kept(path: Path) -> dict[str, Any]:
    """The results that are there, of parts that are not measured anew."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def limits(threads: int) -> Limits:
    """What the machine reads and computes in a second now, with so many threads; its best of three is what counts."""
    return machine.measure(threads, 3)


def quiet() -> None:
    """Wait until the threads of other sessions sleep."""
    time.sleep(_SLEEP)


def prompt(vocab_size: int, tokens: int, turn: int) -> NDArray[np.int64]:
    """Random ids ``[1, tokens]``, the same for all that are compared in a turn."""
    return np.random.default_rng([tokens, turn]).integers(4, vocab_size, (1, tokens))


def prefill(session: Session, ids: NDArray[np.int64]) -> float:
    """Seconds from token ids to the first new token."""
    past = session.new_past(1)
    start = time.perf_counter()
    _choose(session.run("prefill", ids, past))
    return time.perf_counter() - start


class Decoding:
    """Greedy steps of rows that hold ``lengths`` tokens each, in a session of its own."""

    def __init__(self, session: Session, lengths: Sequence[int]) -> None:
        self._session, self._lengths = session, np.array(lengths, np.int64)
        self._meter = Meter(session, 1)

    def prepare(self) -> None:
        """Hold the tokens, and take some steps that are not counted."""
        self._past = self._meter.place(len(self._lengths), int(self._lengths.max()))
        self._ids = np.full((len(self._lengths), 1), 5, np.int64)
        for _ in range(_LAST):
            self._past.lengths[:] = self._lengths - 1
            self._ids = _choose(self._session.run("decode", self._ids, self._past))

    def steps(self, count: int) -> list[float]:
        """Seconds of each of ``count`` steps after ``prepare``."""
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            self._ids = _choose(self._session.run("decode", self._ids, self._past))
            seconds.append(time.perf_counter() - start)
        return seconds


def ratio(rounds: Sequence[Mapping[str, Any]], name: str, other: str, key: str) -> list[float]:
    """Of each round, how many times as fast ``name`` was as ``other``: rates and times count the right way round."""
    pairs = [(float(r[name][key]), float(r[other][key])) for r in rounds]
    return [mine / theirs if key.endswith("per_second") else theirs / mine for mine, theirs in pairs]


def summary(rounds: Sequence[Mapping[str, Any]], baseline: str, compared: Sequence[str]) -> dict[str, Any]:
    """Of each name: the medians of all figures, and of the ``compared`` ones the rounds' ratios to the baseline.

    A ratio above 1 is faster than the baseline. ``least`` and ``most`` are those of single rounds: where both lie on
    one side of 1, every round says the same.
    """
    found: dict[str, Any] = {}
    for name in rounds[0]:
        ratios = {key: ratio(rounds, name, baseline, key) for key in compared}
        found[name] = {
            "median": {key: statistics.median(float(r[name][key]) for r in rounds) for key in rounds[0][name]},
            "ratio": {
                key: {"median": statistics.median(values), "least": min(values), "most": max(values)}
                for key, values in ratios.items()
            },
        }
    return found


def _choose(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    chosen: NDArray[np.int64] = logits[:, -1].argmax(axis=-1)[:, None].astype(np.int64, copy=False)
    return chosen
