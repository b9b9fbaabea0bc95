"""The worker of onnxruntime-genai: a folder that its own builder wrote for CUDA.

Settings: ``path``, ``context``, ``graph`` (whether decode is captured as a CUDA graph; its config says it at load).
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

# Before onnxruntime-genai: where CUDA's libraries came with torch, they are found through it.
with contextlib.suppress(ImportError):
    import torch  # noqa: F401
with contextlib.suppress(ImportError):  # it looks for ONNX Runtime's library, which this loads
    import onnxruntime  # noqa: F401

import numpy as np
import onnxruntime_genai as og
from cuda_serving import Clock, random_ids, serve
from cuda_trace import traced


class GenAI:
    """One model; each request has a generator of its own."""

    def __init__(self, settings: dict[str, Any]) -> None:
        written = json.loads((Path(settings["path"]) / "genai_config.json").read_text(encoding="utf-8"))
        config = og.Config(settings["path"])
        if not settings["graph"]:  # the builder was told to ask for it
            config.set_provider_option("cuda", "enable_cuda_graph", "0")
        self.model = og.Model(config)
        self.context = int(settings["context"])
        self.vocab_size = int(written["model"]["vocab_size"])
        self.about = {
            "version": getattr(og, "__version__", "unknown"),
            "graph": bool(settings["graph"]),
            "written_provider_options": written["model"]["decoder"]["session_options"].get("provider_options"),
        }

    def prefill(self, tokens: int, turn: int, repeats: int) -> dict[str, Any]:
        """Seconds from token ids to the first new token, each time with a new generator."""
        ids = self._random(1, tokens, turn)
        seconds = []
        for _ in range(repeats):
            generator = self._generator(1)
            start = time.perf_counter()
            generator.append_tokens(ids)
            generator.generate_next_token()
            generator.get_next_tokens()
            seconds.append(time.perf_counter() - start)
            del generator
        return {"each": seconds}

    def decode(self, how: str, rows: int, past: int, steps: int, warm: int, turn: int) -> dict[str, Any]:
        """Seconds of ``steps`` greedy steps of ``rows`` rows after ``past`` tokens each; ``how`` is greedy."""
        assert how == "greedy", how
        generator = self._generator(rows)
        generator.append_tokens(self._random(rows, past, turn))
        generator.generate_next_token()
        clock = Clock()
        tokens = []
        for _ in range(warm + steps + 1):
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
            clock.mark()
        return {**clock.figures(warm), "tokens": tokens[:16]}

    def profile(self, how: str, past: int, steps: int, turn: int) -> dict[str, Any]:
        """The device's kernels of ``steps`` decode steps, by name."""
        assert how == "greedy", how
        generator = self._generator(1)
        generator.append_tokens(self._random(1, past, turn))

        def some(count: int) -> None:
            for _ in range(count):
                generator.generate_next_token()
                generator.get_next_tokens()

        some(8)
        return traced(lambda: some(steps), steps)

    def _random(self, rows: int, tokens: int, turn: int) -> Any:
        ids = np.array(random_ids(self.vocab_size, rows, tokens, turn), np.int32)
        return ids[0] if rows == 1 else ids

    def _generator(self, rows: int) -> Any:
        params = og.GeneratorParams(self.model)
        # After </s> it gives padding, but computes on: times stay comparable (measured on the CPU).
        params.set_search_options(max_length=self.context, do_sample=False, batch_size=rows)
        return og.Generator(self.model, params)


if __name__ == "__main__":
    serve(GenAI)
