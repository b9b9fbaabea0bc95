"""The parts of a run: prepare, limits, steps, kernels, batches. Each keeps what it has, as soon as it has it."""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cuda_bench import contenders as rows
from cuda_bench.budget import OutOfTimeError
from cuda_bench.contenders import BATCH_BUILDS, BATCH_PAST, BATCHES, BUILDS, Contender, relabel
from cuda_bench.processes import WorkerError, run_beside
from cuda_bench.run import Run, make_checkpoint

#: Seconds that exports and builders may take, all beside each other.
BUILD = 200
#: Steps before those that count: they bind, capture, and raise the clocks.
WARM = 16
#: Steps of a batch, and of a traced step.
BATCH_STEPS, TRACED_STEPS = 32, 16
BATCH_ROUNDS = 2
#: Seconds that a round of steps takes, the kernels of a contender, and a batch's worker with all its sizes.
ROUND, KERNELS, BATCH_WORKER = 15, 5, 25
#: Rounds before the parts that follow have a right to their time, and how much that is.
FIRST_ROUNDS, REST = 2, 110
#: Of it, what the batches need.
BATCHES_REST = 75


def prepare(run: Run, *, again: bool) -> None:
    """The checkpoint, and a model of it for every contender."""
    found: dict[str, Any] = {"checkpoint": make_checkpoint(run)}
    run.keep("prepare", found)
    wanted = [BUILDS[name] for name in dict.fromkeys(c.build for c in run.contenders) if name is not None]
    commands = {}
    for build in wanted:
        if (absent := build.absent()) is not None:
            found[build.name] = {"failed": absent}
            run.say(f"{build.name}: {absent}")
        elif again or not build.mark(run.work).exists():
            build.mark(run.work).unlink(missing_ok=True)
            shutil.rmtree(build.path(run.work), ignore_errors=True)
            commands[build.name] = build.command(run.checkpoint, build.path(run.work))
        else:
            found[build.name] = {"there": True}
    if any(BUILDS[name].package for name in commands):
        relabel(run.checkpoint, run.work / "as-ernie4_5")
    threads = max(1, (os.cpu_count() or 1) // max(1, len(commands)))
    run.say(f"making {', '.join(commands) or 'nothing'} beside each other, {threads} threads each")
    made = run_beside(commands, run.work / "logs", run.budget.at_most(BUILD), {"OMP_NUM_THREADS": str(threads)})
    for name, result in made.items():
        if "failed" not in result:
            BUILDS[name].mark(run.work).touch()
        found[name] = result
    for build in wanted:
        found[build.name]["bytes"] = build.bytes(run.work)
    run.keep("prepare", found)


def steps(run: Run) -> None:
    """Prefill and decode of all contenders, by turns."""
    found: dict[str, Any] = {"context": run.context, "steps": run.steps, "warm": WARM, "rounds": []}
    found["workers"] = run.start(run.contenders)
    run.keep("steps", found)
    for turn in range(1, run.rounds + 1):
        try:
            run.budget.need(
                ROUND + (REST if turn > FIRST_ROUNDS else 0), f"round {turn} of {run.rounds}, and the rest,"
            )
        except OutOfTimeError as error:
            found["ended"] = str(error)
            break
        present = [contender for contender in run.contenders if contender.name in run.open]
        round_ = {c.name: visit(run, c, turn) for c in (present if turn % 2 else present[::-1])}
        found["rounds"].append(round_)
        run.keep("steps", found)
        run.say(f"round {turn} of {run.rounds}")
        for name, figures in round_.items():
            shown = ", ".join(f"{what} {figure['ms']:.3f}" for what, figure in figures.items() if "ms" in figure)
            print(f"    {name}: {shown} ms", flush=True)


def visit(run: Run, contender: Contender, turn: int) -> dict[str, Any]:
    """One contender's figures of a round: ``prefill@512``, ``greedy@512`` and so on."""
    found: dict[str, Any] = {}
    for tokens in contender.prefills:
        answer = run.ask(contender.name, "prefill", tokens=tokens, turn=turn, repeats=3)
        found[f"prefill@{tokens}"] = prefill_figure(answer)
    for past in contender.pasts:
        for how in contender.hows if past == BATCH_PAST else contender.hows[:1]:
            answer = run.ask(
                contender.name, "decode", how=how, rows=1, past=past, steps=run.steps, warm=WARM, turn=turn
            )
            found[f"{how}@{past}"] = step_figure(answer)
    if contender.whole:
        found[f"generate@{BATCH_PAST}"] = step_figure(
            run.ask(contender.name, "generate", past=BATCH_PAST, steps=run.steps)
        )
    return found


def kernels(run: Run) -> None:
    """What runs on the GPU in one step, and in one prompt."""
    found: dict[str, Any] = {"past": BATCH_PAST, "prompt": 2048}
    said = {} if run.open else run.start(run.contenders)  # what did not start for the steps is not tried again
    for contender in run.contenders:
        name = contender.name
        if name not in run.open:
            found[name] = said.get(name, {"failed": "it is not open"})
            continue
        run.budget.need(KERNELS + BATCHES_REST, f"the kernels of {name}, and the batches,")
        how = contender.hows[0]
        step = run.ask(name, "profile", how=how, past=BATCH_PAST, steps=TRACED_STEPS, turn=99)
        if "failed" in step and contender.ours:  # by another way: without steps in flight
            step = {**run.ask(name, "profile", how="run", past=BATCH_PAST, steps=TRACED_STEPS, turn=99), "how": "run"}
        found[name] = {"step": step}
        if contender.ours and contender.prefills:
            found[name]["prefill"] = run.ask(name, "profile", how="prefill", past=2048, steps=1, turn=99)
        run.keep("kernels", found)
        run.say(f"kernels of {name}: {step.get('busy_us', 0):.0f} us busy of {step.get('span_us', 0):.0f}")


def batches(run: Run) -> None:
    """Rows that decode together: one worker at a time, for the memory of all rows' keys and values."""
    run.close()
    found: dict[str, Any] = {"past": BATCH_PAST, "steps": BATCH_STEPS, "builds": {}}
    for build in BATCH_BUILDS:
        own = next((c for c in run.contenders if c.build == build and c.ours), None)
        if own is None:
            continue
        try:
            run.budget.need(BATCH_WORKER, f"batches of {build}")
        except OutOfTimeError as error:
            found["builds"][build] = {"failed": str(error)}
            run.keep("batches", found)
            continue
        context = BATCH_PAST + WARM + BATCH_STEPS + 16
        contender = rows.Contender(
            f"{build} batches", own.script, build, own.storage, {**own.settings, "kernels": "auto"}, context=context
        )
        said = run.start([contender])[contender.name]
        sizes: dict[str, Any] = {}
        found["builds"][build] = {"worker": said, "sizes": sizes}
        for turn in range(1, BATCH_ROUNDS + 1):
            for size in BATCHES:
                if contender.name not in run.open or (turn > 1 and "failed" in sizes.get(str(size), [{}])[-1]):
                    continue
                if run.budget.left < 8:
                    continue
                answer = run.ask(
                    contender.name, "decode", how="greedy", rows=size, past=BATCH_PAST, steps=BATCH_STEPS, warm=WARM,
                    turn=turn,
                )  # fmt: skip
                figure = step_figure(answer)
                sizes.setdefault(str(size), []).append(figure)
                if "ms" in figure:
                    run.say(f"{build}, {size} rows: {figure['ms']:.3f} ms, {1e3 * size / figure['ms']:.0f} tokens/s")
                if "failed" in figure:  # a worker that was killed does not come back
                    restart(run, contender)
            run.keep("batches", found)
        run.close()
    run.keep("batches", found)


def restart(run: Run, contender: Contender) -> None:
    """Open a worker anew, where it ended or lost its device."""
    worker = run.open.pop(contender.name, None)
    if worker is not None:
        try:
            worker.ask("memory", 10)
            run.open[contender.name] = worker
            return
        except WorkerError:
            worker.close()
    if run.budget.left > BATCH_WORKER:
        run.start([contender])


def prefill_figure(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The least of a visit's repeats (a first one may bind or grow buffers), in milliseconds."""
    if "failed" in answer:
        return dict(answer)
    return {"ms": 1e3 * min(answer["each"]), "each_ms": [1e3 * s for s in answer["each"]]}


def step_figure(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Milliseconds a step: all of them by their number, and the median and the 95th percentile of single ones."""
    if "failed" in answer:
        return dict(answer)
    if answer["steps"] < 1:
        return {"failed": "the text ended at once"}
    found: dict[str, Any] = {"ms": 1e3 * answer["seconds"] / answer["steps"], "tokens": answer.get("tokens", [])}
    if answer.get("each"):
        found |= {"median_ms": 1e3 * statistics.median(answer["each"]), "p95_ms": 1e3 * percentile(answer["each"], 95)}
    return found


def percentile(values: Sequence[float], rank: int) -> float:
    """The value that ``rank`` % of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, -(-rank * len(ordered) // 100) - 1)]
