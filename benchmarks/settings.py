"""Measure what can be set: threads, pinning and spinning, the chunk of a prefill, and the rows of a batch.

    python benchmarks/settings.py                        # the 2.17 B bundle of peers.py: 5 to 7 minutes on 2 cores
    python benchmarks/settings.py chunks --bundle OUT    # some of it, of another bundle

threads  numbers of threads, pinned to cores or not, spinning while they wait or not: prefill, decode, processor time
chunks   a long prompt, in chunks of so many tokens: speed, and the most memory that the process held
batches  rows of different lengths that decode together: tokens a second in sum

Each setting has a process of its own, all of native kernels, and takes its turn in every round, in an order that is
shuffled anew. Before each round, and after the last, the machine's read bandwidth is measured. Results, with medians
and ratios to what the package does by default, go to benchmarks/results/settings.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnxruntime as ort
from common import busy_seconds, write_results
from own_sessions import (
    Decoding,
    arguments,
    begun,
    context_of,
    kept,
    limits,
    opened,
    prefill,
    prompt,
    quiet,
    summary,
)
from performance_tables import settings_tables

from helium_onnx.bundle import Bundle
from helium_onnx.runtimes import native_session
from helium_onnx.runtimes.graph_loading import session_options
from helium_onnx.runtimes.native_session import NativeSession
from helium_onnx.runtimes.providers import CPU, ExecutionProvider, default_threads

PROMPT, PAST, STEPS = 512, 512, 16
CHUNKS, LONG_PROMPT = (32, 64, 128, 256, 512, 1024, 2048), 2048
ROWS = 1, 4, 16
#: Seconds after the last step in which threads may go on spinning.
AFTERWARDS = 0.2


@dataclass(frozen=True)
class Setting:
    """How a session is started. ``chunk`` is the most tokens of one prefill call, of ``context`` tokens in all."""

    threads: int
    context: int
    pinned: bool = False
    spin: bool = True
    chunk: int = CPU.prefill_chunk


class Apart:
    """A session in a process of its own: its threads, pinning, processor time and memory are no other's."""

    def __init__(self, bundle: Path, setting: Setting) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        self.call(_start, bundle, setting)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._pool.submit(function, *arguments).result()

    def measured(self, function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
        """What ``function`` finds there, and how many cores other processes took meanwhile."""
        quiet()
        start, busy, own = time.perf_counter(), busy_seconds(), self.call(time.process_time)
        found: dict[str, float] = self.call(function, *arguments)
        wall = time.perf_counter() - start
        others = busy_seconds() - busy - (self.call(time.process_time) - own)
        return {**found, "other_processes_cores": max(0.0, others) / wall}

    def close(self) -> None:
        self._pool.shutdown()


# What runs in such a process. ---------------------------------------------------------------------------------------

_session: NativeSession
_decoding: dict[tuple[int, ...], Decoding] = {}


def _start(path: Path, setting: Setting) -> None:
    global _session
    # The one constant that the session reads when it runs, and what it starts ONNX Runtime with: no caller sets these.
    module: Any = native_session
    module.CPU = replace(CPU, prefill_chunk=setting.chunk)
    cores = one_a_core(os.sched_getaffinity(0))
    if setting.pinned and setting.threads > 1:
        module.session_options = pinned_options(cores[1 : setting.threads])
    _session = NativeSession(
        Bundle.open(path), context_length=setting.context, threads=setting.threads, spin=setting.spin
    )
    if setting.pinned:  # the calling thread works along; the others are told to ONNX Runtime
        os.sched_setaffinity(0, {cores[0]})
    prefill(_session, prompt(_session.vocab_size, 16, 0))


def one_a_core(allowed: set[int]) -> list[int]:
    """Logical processors, one of each core first, then the cores' second hardware threads."""

    def place(cpu: int) -> tuple[int, int]:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        text = path.read_text() if path.exists() else str(cpu)
        siblings = [n for part in text.strip().split(",") for n in _range(part)]
        return siblings.index(cpu), cpu

    return sorted(allowed, key=place)


def _range(text: str) -> range:
    """Of ``3`` or ``0-1``."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def pinned_options(cores: Sequence[int]) -> Callable[[ExecutionProvider, int], ort.SessionOptions]:
    """``session_options`` with each thread that ONNX Runtime starts on one logical processor (it counts from 1)."""

    def options(row: ExecutionProvider, threads: int) -> ort.SessionOptions:
        found = session_options(row, threads)
        found.add_session_config_entry("session.intra_op_thread_affinities", ";".join(str(core + 1) for core in cores))
        return found

    return options


def _speed(prompt_tokens: int, past: int, steps: int, turn: int) -> dict[str, float]:
    """Prefill and decode, in wall and in processor time, and what the threads took in vain after the last step."""
    ids = prompt(_session.vocab_size, prompt_tokens, turn)
    prefill(_session, ids[:, :16])
    clock = time.process_time()
    seconds = prefill(_session, ids)
    computed = time.process_time() - clock
    quiet()
    decoded = _decode((past,), steps)
    clock = time.process_time()
    time.sleep(AFTERWARDS)
    return {
        "prefill_tokens_per_second": prompt_tokens / seconds,
        "prefill_cpu_ms_per_token": 1e3 * computed / prompt_tokens,
        "decode_ms_per_token": 1e3 * statistics.median(decoded["seconds"]),
        "decode_cpu_ms_per_token": 1e3 * decoded["cpu"] / steps,
        "afterwards_cpu_ms": 1e3 * (time.process_time() - clock),
    }


def _decode(lengths: tuple[int, ...], steps: int) -> dict[str, Any]:
    decoding = _decoding.setdefault(lengths, Decoding(_session, lengths))
    decoding.prepare()
    clock = time.process_time()
    seconds = decoding.steps(steps)
    return {"seconds": seconds, "cpu": time.process_time() - clock}


def _batch(lengths: tuple[int, ...], steps: int) -> dict[str, float]:
    step = statistics.median(_decode(lengths, steps)["seconds"])
    return {"decode_ms_per_step": 1e3 * step, "tokens_per_second": len(lengths) / step}


def _long_prompt(tokens: int, turn: int) -> dict[str, float]:
    seconds = prefill(_session, prompt(_session.vocab_size, tokens, turn))
    return {"prefill_tokens_per_second": tokens / seconds, "peak_private_mb": peak_private_mb()}


def peak_private_mb() -> float:
    """The most memory that this process held of its own, so far: its peak without what it has mapped of files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    kilobytes = {name: int(fields[name].split()[0]) for name in ("VmHWM", "RssFile", "RssShmem")}
    return (kilobytes["VmHWM"] - kilobytes["RssFile"] - kilobytes["RssShmem"]) * 1.024e-3


# The parts. ---------------------------------------------------------------------------------------------------------


def counts(cores: int, default: int) -> list[int]:
    """Numbers of threads: all up to 4, then powers of two, what the package takes by default, and all there are."""
    return sorted({n for n in (1, 2, 3, 4, 8, 16, 32, 64, 128, default, cores) if n <= cores})


def threads(bundle: Bundle, rounds: int) -> dict[str, Any]:
    """All of Setting but the chunk."""
    size = min(PROMPT, context_of(bundle) // 2)
    context = size + STEPS + 8
    default = default_threads()
    settings = {
        name(setting): setting
        for count in counts(len(os.sched_getaffinity(0)), default)
        for pinned in (False, True)
        for spin in ((True, False) if count > 1 else (True,))  # nothing spins beside a single thread
        if (setting := Setting(count, context, pinned, spin))
    }
    work = {key: (_speed, size, min(PAST, size), STEPS) for key in settings}
    compared = ("prefill_tokens_per_second", "decode_ms_per_token", "decode_cpu_ms_per_token")
    found = take_turns(bundle, settings, work, rounds, name(Setting(default, context)), compared)
    return {"prompt": size, "past": min(PAST, size), "steps": STEPS, "afterwards_seconds": AFTERWARDS, **found}


def name(setting: Setting) -> str:
    waits = "spin" if setting.spin else "sleep"
    return f"{setting.threads} threads, {'pinned' if setting.pinned else 'free'}, {waits}"


def chunks(bundle: Bundle, rounds: int) -> dict[str, Any]:
    """A long prompt in chunks."""
    size = min(LONG_PROMPT, context_of(bundle))
    sizes = sorted({min(chunk, size) for chunk in (*CHUNKS, CPU.prefill_chunk)})
    settings = {str(chunk): Setting(default_threads(), size, chunk=chunk) for chunk in sizes}
    work = dict.fromkeys(settings, (_long_prompt, size))
    found = take_turns(
        bundle, settings, work, rounds, str(min(CPU.prefill_chunk, size)), ("prefill_tokens_per_second",)
    )
    specs = [s for s in bundle.manifest.graphs["native_decode"].inputs if s.name.startswith("past_key_values.")]
    token = sum(int(s.dims[1]) * int(s.dims[3]) * int(s.dtype.removeprefix("float")) // 8 for s in specs)
    return {"prompt": size, "keys_and_values_mb": size * token * 1e-6, **found}


def batches(bundle: Bundle, rounds: int) -> dict[str, Any]:
    """Rows of different lengths, decoded together."""
    longest = min(PAST, context_of(bundle) // 2)
    setting = Setting(default_threads(), longest + STEPS + 8)
    work = {str(rows): (_batch, ragged(rows, longest), STEPS) for rows in ROWS}
    found = take_turns(bundle, {"": setting}, work, rounds, "1", ("tokens_per_second",))
    return {"pasts": {str(rows): ragged(rows, longest) for rows in ROWS}, "steps": STEPS, **found}


def ragged(rows: int, longest: int) -> tuple[int, ...]:
    """Lengths from a quarter of the longest up to it; of a single row their mean, so that all batches hold as much."""
    shortest = longest // 4
    if rows == 1:
        return ((shortest + longest) // 2,)
    return tuple(shortest + (longest - shortest) * row // (rows - 1) for row in range(rows))


def take_turns(
    bundle: Bundle, settings: Mapping[str, Setting], work: Mapping[str, tuple[Any, ...]], rounds: int, baseline: str,
    compared: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """Rounds in which each piece of work is done once, in the process of its setting (or in the only one).

    Work that measures prompts is given the round's number, since it takes another prompt each time.
    """
    bandwidth, found = [], []
    shuffle = random.Random(0).shuffle
    used = max(setting.threads for setting in settings.values())
    with ExitStack() as stack:
        apart = {key: Apart(bundle.path, setting) for key, setting in settings.items()}
        for one in apart.values():
            stack.callback(one.close)
        for turn in range(rounds):
            bandwidth.append(max(limits(used).read_gigabytes_per_second))
            order = list(work)
            shuffle(order)
            figures = {}
            for key in order:
                function, *given = work[key]
                turns = () if function is _batch else (turn,)
                figures[key] = (apart.get(key) or apart[""]).measured(function, *given, *turns)
            found.append({key: figures[key] for key in work})
            print(f"  round {turn + 1} of {rounds}", flush=True)
        bandwidth.append(max(limits(used).read_gigabytes_per_second))
    return {
        "settings": {key: asdict(setting) for key, setting in settings.items()},
        "default": baseline,
        "read_gigabytes_per_second": bandwidth,
        "summary": summary(found, baseline, compared),
        "rounds": found,
    }


PARTS: dict[str, Callable[[Bundle, int], dict[str, Any]]] = {"threads": threads, "chunks": chunks, "batches": batches}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"default: {' '.join(PARTS)}")
    arguments(parser, "settings.json", rounds=3)
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    bundle = opened(parser, args.bundle)
    results = kept(args.json)
    for part in args.parts or PARTS:
        print(f"{part} ...", flush=True)
        before, started = begun(bundle, default_threads()), time.perf_counter()
        results[part] = {**before, **PARTS[part](bundle, args.rounds), "took_seconds": time.perf_counter() - started}
        write_results(results, args.json)
    print(settings_tables(results))


if __name__ == "__main__":
    main()
