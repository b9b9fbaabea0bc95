"""Measure where a prefill and a decode step spend their time: by operator, before our kernels and after.

    python benchmarks/operators.py                  # the 2.17 B bundle of peers.py: about 2 minutes on 2 quiet cores
    python benchmarks/operators.py --bundle OUT     # another bundle with native graphs

before  the traced graphs on ONNX Runtime's own kernels (kernels="onnxruntime"; without its cache of packed weights)
after   the native graphs on ours

Times of nodes are those of ONNX Runtime's profiler. It takes some time itself, so each call is also timed in a session
without it; all four sessions take turns. Bytes are what a call must read and write at least, as the bundle stores them
(helium_onnx/benchmark/traffic.py): ONNX Runtime's kernels read copies of their own, which are larger. Results go to
benchmarks/results/operators.json, and the tables to standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias

import onnxruntime as ort
from common import busy_seconds, write_results
from own_sessions import (
    Decoding,
    arguments,
    begun,
    context_of,
    limits,
    opened,
    prefill,
    prompt,
    quiet,
)
from performance_tables import operator_tables

from helium_onnx.benchmark.graph_weights import readings
from helium_onnx.benchmark.machine import Limits
from helium_onnx.benchmark.traffic import Traffic, Work
from helium_onnx.bundle import Bundle
from helium_onnx.runtimes import native_session, onnxruntime_session
from helium_onnx.runtimes.graph_loading import session_options
from helium_onnx.runtimes.native_session import NativeSession
from helium_onnx.runtimes.onnxruntime_session import OnnxRuntimeSession
from helium_onnx.runtimes.opening import KernelChoice, open_session
from helium_onnx.runtimes.providers import ExecutionProvider, default_threads
from helium_onnx.runtimes.session import Phase

PROMPT, PAST, STEPS = 512, 512, 8
KINDS: dict[str, KernelChoice] = {"before": "onnxruntime", "after": "native"}
Kind: TypeAlias = Literal["before", "after"]


@dataclass
class Measured:
    """One session, its calls counted: which of the profiler's runs are those that count, and what they took outside."""

    session: NativeSession | OnnxRuntimeSession
    calls: Counter[Phase] = field(default_factory=Counter)
    chosen: dict[Phase, list[int]] = field(default_factory=lambda: {"prefill": [], "decode": []})
    seconds: dict[Phase, list[float]] = field(default_factory=lambda: {"prefill": [], "decode": []})

    def __post_init__(self) -> None:
        counting: Any = self.session
        run = counting.run

        def counted(phase: Phase, *given: Any) -> Any:
            self.calls[phase] += 1
            return run(phase, *given)

        counting.run = counted

    def measure(self, tokens: int, past: int, turn: int) -> None:
        """One prefill and some decode steps."""
        quiet()
        ids = prompt(self.session.vocab_size, tokens, turn)
        prefill(self.session, ids[:, :16])
        self._keep("prefill", [prefill(self.session, ids)])
        quiet()
        decoding = Decoding(self.session, (past,))
        decoding.prepare()
        self._keep("decode", decoding.steps(STEPS))

    def _keep(self, phase: Phase, seconds: Sequence[float]) -> None:
        calls = self.calls[phase]
        self.chosen[phase] += range(calls - len(seconds), calls)
        self.seconds[phase] += seconds

    def profile(self, phase: Phase) -> list[list[dict[str, Any]]]:
        """The events of all nodes, of each run that counts; ends the profiler."""
        held: Any = self.session._sessions[phase]
        inference = held if isinstance(held, ort.InferenceSession) else held.result()
        path = Path(inference.end_profiling())
        runs = nodes_of_runs(json.loads(path.read_text(encoding="utf-8")))
        assert len(runs) == self.calls[phase], "a call is one run"
        return [runs[index] for index in self.chosen[phase]]


@contextmanager
def profiling(folder: Path) -> Iterator[None]:
    """Sessions that are loaded in here write a profile into ``folder``."""
    modules: tuple[Any, ...] = native_session, onnxruntime_session

    def options(row: ExecutionProvider, threads: int) -> ort.SessionOptions:
        found = session_options(row, threads)
        found.enable_profiling = True
        found.profile_file_prefix = str(folder / f"profile-{os.urandom(4).hex()}")
        return found

    for module in modules:
        module.session_options = options
    try:
        yield
    finally:
        for module in modules:
            module.session_options = session_options


def nodes_of_runs(events: Sequence[Mapping[str, Any]]) -> list[list[dict[str, Any]]]:
    """The profiler's events of nodes, run by run, in the order of time."""
    runs = sorted((e for e in events if e["name"] == "model_run"), key=lambda e: e["ts"])
    nodes = sorted(
        (dict(e) for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")),
        key=lambda e: e["ts"],
    )
    borders = [*(run["ts"] for run in runs), float("inf")]
    return [[node for node in nodes if start <= node["ts"] < stop] for start, stop in pairwise(borders)]


def by_operator(runs: Sequence[Sequence[Mapping[str, Any]]], moved: Mapping[str, int]) -> list[dict[str, Any]]:
    """Each type of operator: how many nodes, its median milliseconds a run, its share, and the bytes that it moves."""
    names = Counter(node["args"]["op_name"] for node in runs[0])
    rows = []
    for operator, count in names.items():
        times = [sum(node["dur"] for node in run if node["args"]["op_name"] == operator) * 1e-3 for run in runs]
        row = {"operator": operator, "nodes": count, "ms": statistics.median(times), "bytes": moved.get(operator, 0)}
        rows.append(row)
    total = sum(row["ms"] for row in rows)
    for row in rows:
        row["share"] = row["ms"] / total if total else 0.0
    return sorted(rows, key=lambda row: -row["ms"])


def moved_bytes(bundle: Bundle, graph: str, work: Work) -> dict[str, int]:
    """What the operators of a graph read of the weights, and the attention of keys and values, of all of ``work``."""
    weights: dict[str, dict[int, int]] = {}
    for reading in readings(bundle, graph):
        if not reading.gathers:
            found = weights.setdefault(reading.operator, {})
            found.update({t.offset: t.nbytes for t in reading.tensors if t.name not in ("cos", "sin")})
    moved = {operator: sum(tensors.values()) for operator, tensors in weights.items()}
    for stored in bundle.manifest.graphs[graph].operators:
        operator = stored.rpartition(".")[2]  # the profiler names no domains
        if "Attention" in operator:  # there is one type of them in a graph
            moved[operator] = moved.get(operator, 0) + work.cache_read_bytes + work.cache_write_bytes
    return moved


def measure(bundle: Bundle, rounds: int) -> dict[str, Any]:
    """All four sessions by turns."""
    threads = default_threads()
    size = min(PROMPT, context_of(bundle) // 2)
    past = min(PAST, size)
    context = size + STEPS + 8
    machines: list[Limits] = []
    others: list[float] = []
    found: dict[str, Any] = {"prompt": size, "past": past, "steps": STEPS, "rounds": rounds}

    def load(kernels: KernelChoice) -> Measured:
        session = open_session(bundle, choice=kernels, threads=threads, context_length=context, cache=False)
        stack.callback(session.close)
        assert isinstance(session, (NativeSession, OnnxRuntimeSession)), "a bundle for the CPU is compared"
        session.wait()
        return Measured(session)

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        plain = {kind: load(kernels) for kind, kernels in KINDS.items()}
        with profiling(Path(folder)):
            profiled = {kind: load(kernels) for kind, kernels in KINDS.items()}
        sessions = [*plain.values(), *profiled.values()]
        for turn in range(rounds):
            machines.append(limits(threads))
            clocks = clocks_now()
            for measured in sessions if turn % 2 == 0 else sessions[::-1]:
                measured.measure(size, past, turn)
            wall, busy, own = (now - was for now, was in zip(clocks_now(), clocks, strict=True))
            others.append(max(0.0, busy - own) / wall)
            print(f"  round {turn + 1} of {rounds}", flush=True)
        machines.append(limits(threads))
        found["read_gigabytes_per_second"] = [max(limit.read_gigabytes_per_second) for limit in machines]
        found["int8_gigaops"] = [max(limit.int8_gigaops) for limit in machines if limit.int8_gigaops]
        found["other_processes_cores"] = others
        phases: tuple[Phase, ...] = "decode", "prefill"
        for phase in phases:
            found[phase] = {
                kind: compared(bundle, phase, kind, size, past, plain[kind], profiled[kind]) for kind in KINDS
            }
    return found


def clocks_now() -> tuple[float, float, float]:
    """Wall, processor time that anyone took, and that this process took."""
    return time.perf_counter(), busy_seconds(), time.process_time()


def compared(
    bundle: Bundle, phase: Phase, kind: str, size: int, past: int, plain: Measured, profiled: Measured
) -> dict[str, Any]:
    """One graph: time without and with the profiler, what must be moved, and its operators."""
    native = kind == "after"
    traffic = Traffic(bundle, native=native)
    work = traffic.decode(past=past + STEPS // 2, batch=1) if phase == "decode" else traffic.prefill(size)
    runs = profiled.profile(phase)
    return {
        "ms": 1e3 * statistics.median(plain.seconds[phase]),
        "profiled_ms": 1e3 * statistics.median(profiled.seconds[phase]),
        "nodes": len(runs[0]),
        "weight_bytes": work.weight_bytes,
        "total_bytes": work.total_bytes,
        "int8_operations": work.int8_operations,
        "operators": by_operator(runs, moved_bytes(bundle, f"native_{phase}" if native else phase, work)),
        "samples_ms": [1e3 * seconds for seconds in plain.seconds[phase]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser, "operators.json", rounds=5)
    args = parser.parse_args()
    bundle = opened(parser, args.bundle)
    results = begun(bundle, default_threads())
    results |= measure(bundle, args.rounds)
    write_results(results, args.json)
    print(operator_tables(results))


if __name__ == "__main__":
    main()
