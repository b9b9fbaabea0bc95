"""Measure what Python takes of a decode step: everything that is not inside the call of ONNX Runtime.

    python benchmarks/python_share.py                     # helium-docs-7m, exported to out/bench; about a minute
    python benchmarks/python_share.py --bundle OUT        # another bundle

The smaller the model, the larger the share, so the sample is the worst case. From the end of one call of decode.onnx to
the beginning of the next, in the real loop and between real steps (whose weights push Python out of the processor's
caches), greedily:

session   a loop over ``Session.run`` with an argmax: below sampling and text
generate  ``model.generate``: choice, ends, history; text is read once, at the end
stream    ``model.stream``: text token by token, each piece handed to the caller

``argmax`` is what numpy takes of it to find the largest of the logits, measured in the same place. Medians over all
steps of all rounds; what the probe itself takes is taken off. Kinds take turns.
Results: benchmarks/results/python_share.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, conditions, write_results
from speculation import export_sample

import helium_onnx
from helium_onnx.runtimes.native_session import NativeSession

NEW, ROUNDS = 200, 15


class Watched:
    """In place of the decode graph's session: notes when each call begins and ends."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.stamps: list[float] = []
        self.io_binding = real.io_binding

    def run_with_iobinding(self, binding: Any) -> None:
        begun = time.perf_counter()
        self.real.run_with_iobinding(binding)
        self.stamps += (begun, time.perf_counter())


@contextmanager
def watched(session: NativeSession) -> Iterator[Watched]:
    real = session._sessions["decode"]
    session._sessions["decode"] = found = Watched(real)
    try:
        yield found
    finally:
        session._sessions["decode"] = real


def by_hand(session: NativeSession, ids: list[int], argmax_seconds: list[float] | None = None) -> None:
    """The least that decoding is. ``argmax_seconds`` gets what numpy takes of it."""
    past = session.new_past(1)
    last_id = np.array([[session.run("prefill", np.array([ids]), past)[0, -1].argmax()]])
    for _ in range(NEW - 1):
        logits = session.run("decode", last_id, past)[0, 0]
        if argmax_seconds is None:
            last_id[0, 0] = logits.argmax()
        else:
            begun = time.perf_counter()
            last_id[0, 0] = logits.argmax()
            argmax_seconds.append(time.perf_counter() - begun)


def probe_seconds() -> float:
    """What the probe itself takes outside of the call that it watches."""

    class Nothing:
        io_binding = run_with_iobinding = staticmethod(lambda *_: None)

    probe = Watched(Nothing)
    for _ in range(10_000):
        probe.run_with_iobinding(None)
    return statistics.median(b - a for a, b in zip(probe.stamps[1::2], probe.stamps[2::2], strict=False))


def measure(model: helium_onnx.LanguageModel, prompt: str) -> dict[str, Any]:
    session = model.session
    assert isinstance(session, NativeSession), "ONNX Runtime's own kernels are bound otherwise"
    ids = model.tokenizer.encode(prompt)

    def stream() -> None:
        with model.stream(prompt, max_new_tokens=NEW, ignore_eos=True, speculation="off") as pieces:
            for _ in pieces:
                pass

    kinds: dict[str, Callable[[], object]] = {
        "session": lambda: by_hand(session, ids),
        "generate": lambda: model.generate(prompt, max_new_tokens=NEW, ignore_eos=True, speculation="off"),
        "stream": stream,
    }
    outside: dict[str, list[float]] = {kind: [] for kind in kinds}
    inside: dict[str, list[float]] = {kind: [] for kind in kinds}
    argmax: list[float] = []
    for turn in range(ROUNDS):
        for kind in list(kinds)[turn % len(kinds) :] + list(kinds)[: turn % len(kinds)]:
            with watched(session) as found:
                kinds[kind]()
            begun, ended = found.stamps[::2], found.stamps[1::2]
            inside[kind] += (b - a for a, b in zip(begun, ended, strict=True))
            outside[kind] += (b - a for a, b in zip(ended, begun[1:], strict=False))
        by_hand(session, ids, argmax)
    probe = probe_seconds()
    report: dict[str, Any] = {"probe_us": 1e6 * probe, "argmax_us": 1e6 * statistics.median(argmax)}
    for kind in kinds:
        python, model_seconds = statistics.median(outside[kind]) - probe, statistics.median(inside[kind])
        report[kind] = {
            "inside_us": 1e6 * model_seconds,
            "outside_us": 1e6 * python,
            "share": python / (python + model_seconds),
            "steps": len(inside[kind]),
        }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what Python takes of a decode step.")
    parser.add_argument("--bundle", type=Path, default=ROOT / "out/bench/docs-7m-int4-fast")
    parser.add_argument("--threads", type=int, help="default: the physical cores")
    args = parser.parse_args()
    export_sample(args.bundle)
    texts = (json.loads(line)["text"] for line in (ROOT / "benchmarks/data/valid.jsonl").open(encoding="utf-8"))
    prompt = next(text for text in texts if len(text) > 800)[:400]
    with helium_onnx.load(args.bundle, threads=args.threads, prefix_cache=0) as model:
        threads = int(getattr(model.session, "threads", 1))
        results = {"conditions": conditions(threads), "bundle": args.bundle.name, "new_tokens": NEW, "rounds": ROUNDS}
        results |= measure(model, prompt)
    for kind in ("session", "generate", "stream"):
        found = results[kind]
        print(
            f"{kind:8} {found['outside_us']:5.2f} us outside of {found['inside_us']:.0f} us inside ONNX Runtime: "
            f"{100 * found['share']:.2f} % (argmax {results['argmax_us']:.2f} us of it)"
        )
    write_results(results, ROOT / "benchmarks/results/python_share.json")


if __name__ == "__main__":
    main()
