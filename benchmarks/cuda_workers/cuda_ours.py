"""The worker of helium-onnx: a bundle through its session, greedily in flight, or step by step.

Settings: ``path``, ``kernels`` (as in helium_onnx.load), ``context``; ``provider`` for another than cuda.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from typing import Any

# Before onnxruntime: where CUDA's libraries came with torch, they are found through it.
with contextlib.suppress(ImportError):
    import torch  # noqa: F401

import numpy as np
from cuda_serving import Clock, random_ids, serve
from cuda_trace import device_memory, traced
from numpy.typing import NDArray

import helium_onnx
from helium_onnx.generation.sampling import Sampler, SamplingOptions
from helium_onnx.runtimes.session import Past

Ids = NDArray[np.int64]
#: What someone who samples commonly asks for: it needs the logits, and all of them sorted.
SAMPLING = SamplingOptions(temperature=0.8, top_k=50, top_p=0.95, seed=0)


class Ours:
    """One model; each request begins with an empty past."""

    def __init__(self, settings: dict[str, Any]) -> None:
        before = device_memory()
        self.model = helium_onnx.load(
            settings["path"],
            provider=settings.get("provider", "cuda"),
            kernels=settings.get("kernels", "auto"),
            context_length=settings["context"],
            prefix_cache=0,
        )
        self.session: Any = self.model.session
        wait = getattr(self.session, "wait", None)
        if wait is not None:
            wait()
        after = device_memory()
        self.about = {
            "session": type(self.session).__name__,
            "device_bytes": None if before is None or after is None else before[0] - after[0],
        }

    def prefill(self, tokens: int, turn: int, repeats: int) -> dict[str, Any]:
        """Seconds from token ids to the first new token, each time into an empty past."""
        ids = self._random(1, tokens, turn)
        seconds = []
        for _ in range(repeats):
            past = self.session.new_past(1)
            start = time.perf_counter()
            int(self.session.run("prefill", ids, past)[0, -1].argmax())
            seconds.append(time.perf_counter() - start)
        return {"each": seconds}

    def decode(self, how: str, rows: int, past: int, steps: int, warm: int, turn: int) -> dict[str, Any]:
        """Seconds of ``steps`` steps of ``rows`` rows that hold ``past`` tokens each, after ``warm`` others.

        ``how``: greedy (the session's own, in flight), run (logits come to the host, argmax there), sample (the same,
        sampled as SAMPLING says).
        """
        first, held = self._held(rows, past, turn)
        clock = Clock()
        tokens = []
        with contextlib.closing(self._steps(how, first, held)) as running:
            for _ in range(warm + steps + 1):
                chosen = next(running)
                clock.mark()
                tokens.append(int(chosen[0]))
        return {**clock.figures(warm), "tokens": tokens[:16]}

    def generate(self, past: int, steps: int) -> dict[str, Any]:
        """Seconds from the first token to the last of ``LanguageModel.generate``: session, choice of tokens and text.

        ``past`` is about the number of tokens of the prompt.
        """
        prompt = "insert a table " * (past // 4)
        for _ in range(2):  # the first one warms up
            result = self.model.generate(prompt, max_new_tokens=steps + 1, speculation="off")
        timings = result.timings
        seconds = timings.total_seconds - timings.time_to_first_token_seconds
        return {"seconds": seconds, "steps": len(result[0].token_ids) - 1}

    def profile(self, how: str, past: int, steps: int, turn: int) -> dict[str, Any]:
        """The device's kernels of ``steps`` decode steps, by name (``prefill``: of one prompt of ``past`` tokens)."""
        if how == "prefill":
            ids = self._random(1, past, turn)
            self.session.run("prefill", ids, self.session.new_past(1))
            held = self.session.new_past(1)
            return traced(lambda: self.session.run("prefill", ids, held), 1)
        first, held = self._held(1, past, turn)
        with contextlib.closing(self._steps(how, first, held)) as running:
            for _ in range(8):
                next(running)

            def some() -> None:
                for _ in range(steps):
                    next(running)

            return traced(some, steps)

    def memory(self) -> dict[str, Any]:
        """Free and all bytes of the device."""
        free, total = device_memory() or (None, None)
        return {"free": free, "total": total}

    def _random(self, rows: int, tokens: int, turn: int) -> Ids:
        return np.array(random_ids(self.session.vocab_size, rows, tokens, turn), np.int64)

    def _held(self, rows: int, tokens: int, turn: int) -> tuple[Ids, Past]:
        """A past whose rows were prefilled with ``tokens`` tokens each, and the tokens that follow ``[rows, 1]``."""
        past: Past = self.session.new_past(rows)
        ids = self._random(rows, tokens, turn)
        first = [int(self.session.run("prefill", ids[i : i + 1], past.row(i))[0, -1].argmax()) for i in range(rows)]
        return np.array(first, np.int64)[:, None], past

    def _steps(self, how: str, first: Ids, past: Past) -> Generator[Ids]:
        """The tokens ``[rows]`` of each step, without end."""
        if how == "greedy":
            yield from self.session.greedy(first, past)
            return
        assert how in ("run", "sample"), how
        choose = _argmax if how == "run" else _sampling(len(first))
        ids = first
        while True:
            ids = choose(self.session.run("decode", ids, past)[:, -1])[:, None]
            yield ids[:, 0]


def _argmax(logits: NDArray[np.float32]) -> Ids:
    chosen: Ids = logits.argmax(axis=-1)
    return chosen


def _sampling(rows: int) -> Callable[[NDArray[np.float32]], Ids]:
    samplers = [Sampler(SAMPLING, row) for row in range(rows)]
    return lambda logits: np.array([s.sample(row, ()) for s, row in zip(samplers, logits, strict=True)], np.int64)


if __name__ == "__main__":
    serve(Ours)
