"""Measure helium-onnx beside other runtimes: the same shapes, equivalent weights, taking turns in one run.

    python benchmarks/peers.py                                # all of it
    python benchmarks/peers.py prepare                        # install the peers and convert the model, no more
    python benchmarks/peers.py speed --only llama --rounds 3  # part of it, against one peer
    python benchmarks/peers.py tune --only llama              # a peer's settings against others of its own

Each peer lives in an environment of its own under ``--work``, and gets the random 2 B checkpoint there
(benchmarks/random_checkpoint.py) by its own tools; contenders/ has a file for each. The parts:

prepare  environments and conversions: time, peak memory, size
check    on helium-docs-7m: whether each runtime's float32 gives the greedy tokens of cpu-fp32, and how often what is
         measured has its top token
once     a fresh process, its files cached: start to ready, to the first token, and memory
speed    prefill and decode, by turns; groups of runtimes that fit into memory, ours in each of them
tune     (only where asked for) a peer's settings against its ``alternatives``
show     (only where asked for) the tables of what is in the results

Results go to ``benchmarks/results/peers.json`` with their conditions.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, Worker, busy_seconds, conditions, make_checkpoint, write_results
from contenders import CONTENDERS
from contenders.model import Contender, Runtime, Weights
from contenders.ours import RUNTIME as OURS
from peer_tables import show
from tokenizers import Tokenizer

SAMPLE = ROOT / "samples/helium-docs-7m"
TEXT = ROOT / "benchmarks/data/valid.jsonl"
RESULTS = ROOT / "benchmarks/results/peers.json"
PAGES, CUTS = 100, (40, 80, 128)  # of the check: pages, and tokens of each that are a prompt
GREEDY_PAGES, GREEDY_TOKENS = 16, 64
FIRST = 128, 16  # tokens of the prompt and after it, of the first generation in a fresh process
#: Cores that other processes may take during a measurement before ``--retries`` repeats it.
DISTURBED = 0.15
Prompts = list[list[int]]


@dataclass(frozen=True)
class Plan:
    """What the command line asks for."""

    contenders: tuple[Contender, ...]
    checkpoint: Path
    work: Path
    threads: int
    rounds: int
    prompts: tuple[int, ...]
    new: int
    retries: int

    @property
    def context(self) -> int:
        """Tokens that every runtime has room for."""
        return -(-(max(*self.prompts, FIRST[0]) + max(self.new, *FIRST)) // 256) * 256

    @property
    def vocab_size(self) -> int:
        return int(json.loads((self.checkpoint / "config.json").read_text(encoding="utf-8"))["vocab_size"])

    def prompt(self, size: int, turn: int) -> list[int]:
        """The same for every runtime of a round; another in every round, or a cache of prefixes would be measured."""
        ids: list[int] = np.random.default_rng([size, turn]).integers(4, self.vocab_size, size).tolist()
        return ids

    def start(self, contender: Contender, settings: Mapping[str, Any] | None = None) -> Worker:
        runtime = contender.runtime
        return Worker(
            runtime.environment.python(self.work),
            runtime.worker,
            contender.weights.path(self.checkpoint, self.work),
            self.threads,
            self.context,
            contender.settings if settings is None else settings,
            self.work / f"worker-{contender.name.replace('/', '-').replace(' ', '-')}.log",
        )


def prepare(plan: Plan, *, again: bool) -> Iterator[tuple[str, Any]]:
    """Install and convert (anew, if ``again``); where that fails, say why, and go on to the next."""
    make_checkpoint(plan.checkpoint)
    if again:
        for contender in plan.contenders:
            contender.weights.forget(plan.work)
    for contender in plan.contenders:
        print(f"preparing {contender.name}", flush=True)
        environment = contender.runtime.environment
        try:
            environment.prepare(plan.work)
            made = contender.weights.make(environment.python(plan.work), plan.checkpoint, plan.work)
            yield contender.name, {**made, "storage": contender.storage, "versions": environment.versions(plan.work)}
        except Exception as error:
            yield contender.name, {"failed": str(error)}
            print(f"{contender.name}: {error}", flush=True)


def check(plan: Plan) -> dict[str, Any]:
    """On the small trained checkpoint: greedy tokens of float32, and the top token of what is measured.

    One page does not do: where its text falls into a loop, every quantized model goes along.
    """
    work = plan.work / "check"
    work.mkdir(exist_ok=True)
    pages = encoded_pages()
    greedy = [page[: CUTS[-1]] for page in pages[:GREEDY_PAGES]]
    prompts = [page[:cut] for page in pages for cut in CUTS]

    def tokens(runtime: Runtime, weights: Weights, settings: Mapping[str, Any], ids: Prompts, new: int) -> Prompts:
        python = runtime.environment.python(plan.work)
        weights.make(python, SAMPLE, work)
        path, log = weights.path(SAMPLE, work), work / "worker.log"
        worker = Worker(python, runtime.worker, path, plan.threads, 512, settings, log)
        try:
            return [worker.ask(prompt, new).tokens for prompt in ids]
        finally:
            worker.close()

    assert OURS.float32 is not None
    # A text ends with its </s>: what comes after it is no model's business (onnxruntime-genai then gives padding).
    continued = [to_the_end(page) for page in tokens(OURS, OURS.float32, {}, greedy, GREEDY_TOKENS - 1)]
    tops = tokens(OURS, OURS.float32, {}, prompts, 0)
    found: dict[str, Any] = {
        "greedy_pages": len(greedy),
        "greedy_tokens": sum(map(len, continued)),
        "distinct_greedy_tokens": len({token for page in continued for token in page}),
        "prompts": len(prompts),
        "float32": {},
        "as_measured": {},
    }
    for contender in plan.contenders:
        runtime = contender.runtime
        try:
            if runtime.float32 and runtime.name not in found["float32"]:
                theirs = tokens(runtime, runtime.float32, runtime.float32_settings, greedy, GREEDY_TOKENS - 1)
                same = sum(leading(a, b) for a, b in zip(continued, theirs, strict=True))
                found["float32"][runtime.name] = same
                print(f"{runtime.name} in float32: {same} of {found['greedy_tokens']} greedy tokens", flush=True)
            theirs = tokens(runtime, contender.weights, contender.settings, prompts, 0)
            share = sum(a == b for a, b in zip(tops, theirs, strict=True)) / len(prompts)
            found["as_measured"][contender.name] = share
            print(f"{contender.name}: the same top token in {100 * share:.1f} % of {len(prompts)}", flush=True)
        except Exception as error:
            found["as_measured"][contender.name] = str(error)
            print(f"{contender.name}: {error}", flush=True)
    return found


def encoded_pages() -> Prompts:
    """The validation text's pages that are longer than the longest prompt of the check."""
    tokenizer = Tokenizer.from_file(str(SAMPLE / "tokenizer.json"))
    with TEXT.open(encoding="utf-8") as lines:
        pages = [tokenizer.encode(json.loads(line)["text"]).ids for line in lines]
    return [page for page in pages if len(page) > CUTS[-1]][:PAGES]


def leading(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens of ours, which may be fewer, come before the first that differs."""
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(ours))


def to_the_end(tokens: list[int]) -> list[int]:
    """Up to and with the first end-of-text token of helium-docs-7m."""
    return tokens[: tokens.index(2) + 1] if 2 in tokens else tokens


def once(plan: Plan, repeats: int = 3) -> Iterator[tuple[str, Any]]:
    """A fresh process of each: seconds to ready and to the first token after the process' start; memory."""
    size, new = FIRST
    for contender in ready(plan):
        runs = []
        for turn in range(repeats + 1):
            worker = plan.start(contender)
            before = time.perf_counter() - worker.started
            answer = worker.ask(plan.prompt(size, turn), new)
            worker.close()
            run = {
                "load_seconds": worker.load_seconds,
                "first_token_seconds": before + answer.prefill,
                "loaded_mb": worker.ready["memory_mb"],
                "generated_mb": answer.memory_mb,
            }
            runs.append(run)
            print(f"{contender.name}: {json.dumps(run)}", flush=True)
        # The first run fills the file cache, and our own cache of prepacked weights.
        yield contender.name, {"first": runs[0], "runs": runs[1:], "about": worker.ready["about"]}


def speed(plan: Plan, memory: Mapping[str, Any]) -> dict[str, Any]:
    """Rounds in which each runtime of a group is asked in turn."""
    found: dict[str, Any] = {"prompts": plan.prompts, "new": plan.new, "context": plan.context, "groups": []}
    need = {
        c.name: live_bytes(memory.get(c.name), c.weights.bytes(plan.checkpoint, plan.work)) for c in plan.contenders
    }
    room = 0.7 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for group in groups(list(ready(plan)), need, room):
        print(f"group: {', '.join(c.name for c in group)}", flush=True)
        found["groups"].append(take_turns(plan, {c.name: plan.start(c) for c in group}))
    return found


def live_bytes(memory: Mapping[str, Any] | None, file_bytes: int) -> float:
    """The memory that a runtime needs so as not to read its files again: from what ``once`` found, or a guess.

    At most all that was resident, and at most its private memory and its weights, of what it has mapped.
    """
    if memory is None:
        return 3.0 * file_bytes
    found = memory["runs"][0]["generated_mb"]
    return min(1e6 * float(found["resident"]), 1e6 * float(found["private"]) + file_bytes)


def groups(contenders: Sequence[Contender], need: Mapping[str, float], room: float) -> list[list[Contender]]:
    """Peers in groups whose ``need`` fits in ``room`` bytes together with all of ours, who are in every group."""
    ours = [c for c in contenders if c.ours]
    peers = [c for c in contenders if not c.ours]
    base = sum(need[c.name] for c in ours)
    found: list[list[Contender]] = []
    used = room
    for peer in peers:
        if not found or used + need[peer.name] > room:
            found.append([*ours])
            used = base
        found[-1].append(peer)
        used += need[peer.name]
    return found or [ours]


def tune(plan: Plan) -> Iterator[tuple[str, Any]]:
    """Each peer's settings beside its alternatives."""
    for contender in ready(plan):
        if contender.alternatives:
            print(f"tuning {contender.name}", flush=True)
            rows = {"as measured": contender.settings, **contender.alternatives}
            yield contender.name, take_turns(plan, {name: plan.start(contender, s) for name, s in rows.items()})


def take_turns(plan: Plan, workers: Mapping[str, Worker]) -> list[dict[str, Any]]:
    """All rounds of all workers, which end with them: ``[{worker: {prompt size: figures}}, ...]``."""
    rounds: list[dict[str, Any]] = []
    try:
        for worker in workers.values():
            worker.ask(plan.prompt(max(plan.prompts), 0), 2)  # warm up
        for turn in range(1, plan.rounds + 1):
            figures: dict[str, Any] = {name: {} for name in workers}
            order = list(workers) if turn % 2 else list(workers)[::-1]
            for name in order:
                for size in plan.prompts:
                    others = [w for w in workers.values() if w is not workers[name]]
                    for _ in range(plan.retries + 1):
                        measured = undisturbed(workers[name], others, plan.prompt(size, turn), plan.new)
                        if measured["other_processes_cores"] < DISTURBED:
                            break
                    figures[name][str(size)] = measured
            rounds.append(figures)
            print(f"round {turn} of {plan.rounds}", flush=True)
    finally:
        for worker in workers.values():
            worker.close()
    return rounds


def undisturbed(worker: Worker, others: Iterable[Worker], ids: list[int], new: int) -> dict[str, float]:
    """One answer's speed, and how many cores anyone else took meanwhile: the idle workers, other processes."""
    time.sleep(0.2)  # threads that wait in a loop for more work go to sleep
    worker.ask(ids[:16], 2)  # a system may have taken the pages of a process that was idle for a minute
    others = list(others)

    def clocks() -> tuple[float, float, float, float]:
        return time.perf_counter(), busy_seconds(), worker.cpu_seconds(), sum(w.cpu_seconds() for w in others)

    before = clocks()
    answer = worker.ask(ids, new)
    wall, busy, own, idle = (after - was for after, was in zip(clocks(), before, strict=True))
    return {
        **answer.speed(),
        "idle_workers_cores": idle / wall,
        "other_processes_cores": max(0.0, busy - own - idle) / wall,
    }


def ready(plan: Plan) -> Iterator[Contender]:
    """Those whose environment and weights are there."""
    for contender in plan.contenders:
        python = Path(contender.runtime.environment.python(plan.work))
        if python.exists() and contender.weights.path(plan.checkpoint, plan.work).exists():
            yield contender
        else:
            print(f"{contender.name} is left out: it is not prepared", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="default: prepare check once speed")
    parser.add_argument("--only", nargs="+", default=[""], help="peers whose name has one of these in it")
    parser.add_argument("--work", type=Path, default=ROOT / "out/bench")
    parser.add_argument("--checkpoint", type=Path, help="default: h2b in --work, made if it is not there")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompts", type=int, nargs="+", default=[128, 512], help="tokens")
    parser.add_argument("--new", type=int, default=32, help="tokens after each prompt")
    parser.add_argument("--again", action="store_true", help="convert anew: times of conversions on a quiet machine")
    parser.add_argument("--retries", type=int, default=0, help="of a measurement that other processes disturbed")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    parts = args.parts or ["prepare", "check", "once", "speed"]
    if unknown := set(parts) - {"prepare", "check", "once", "speed", "tune", "show"}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    work: Path = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    chosen = tuple(c for c in CONTENDERS if c.ours or any(word.lower() in c.name.lower() for word in args.only))
    plan = Plan(
        chosen, (args.checkpoint or work / "h2b").resolve(), work, args.threads, args.rounds, tuple(args.prompts),
        args.new, args.retries,
    )  # fmt: skip
    results: dict[str, Any] = json.loads(args.results.read_text()) if args.results.exists() else {}

    for part in [part for part in parts if part != "show"]:
        begun = conditions(args.threads)

        def keep(found: dict[str, Any], part: str = part, begun: dict[str, Any] = begun) -> None:
            results[part] = found
            results[f"{part}_conditions"] = {**begun, "load_average_after": list(os.getloadavg())}
            args.results.parent.mkdir(exist_ok=True)
            write_results(results, args.results)

        if part == "check":
            keep(check(plan))
        elif part == "speed":
            keep(speed(plan, results.get("once", {})))
        else:  # contender by contender: an interrupted run keeps what it has
            measures: dict[str, Callable[[Plan], Iterator[tuple[str, Any]]]] = {
                "prepare": partial(prepare, again=args.again), "once": once, "tune": tune
            }  # fmt: skip
            for name, found in measures[part](plan):
                keep({**results.get(part, {}), name: found})
    show(results, CONTENDERS)


if __name__ == "__main__":
    main()
