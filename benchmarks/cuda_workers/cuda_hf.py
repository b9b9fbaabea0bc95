"""The worker of transformers: the checkpoint in PyTorch, with a static cache, its decode step compiled.

Settings: ``path``, ``context``, ``dtype``, ``mode`` (of torch.compile; null: eager), ``device`` for another than cuda.
"""

from __future__ import annotations

import inspect
import time
from typing import Any

import torch
from cuda_serving import Clock, described, random_ids, serve
from cuda_trace import traced
from torch import Tensor
from transformers import AutoModelForCausalLM, StaticCache


class Transformers:
    """One row. The prompt is computed eagerly, as ``generate`` does it; steps by the compiled model."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.device = settings.get("device", "cuda")
        dtype = getattr(torch, settings["dtype"])
        model = AutoModelForCausalLM.from_pretrained(settings["path"], dtype=dtype).to(self.device).eval()
        self.model: Any = model
        self.cache: Any = StaticCache(config=model.config, max_cache_len=settings["context"])
        # Versions differ in what says where new tokens are written.
        self.positions = "cache_position" in inspect.signature(model.forward).parameters
        self.about: dict[str, Any] = {"compiled": None}
        self.step: Any = model
        if settings["mode"] is not None:
            began = time.perf_counter()
            self.step = torch.compile(model, mode=settings["mode"], fullgraph=True, dynamic=False)
            try:
                self.decode("run", 1, 8, 4, 4, 0)
                self.about["compiled"] = settings["mode"]
            except Exception as error:
                self.step = model
                self.about["compiled"] = f"failed: {described(error)[:500]}"
            self.about["compile_seconds"] = time.perf_counter() - began

    @torch.inference_mode()
    def prefill(self, tokens: int, turn: int, repeats: int) -> dict[str, Any]:
        """Seconds from token ids to the first new token."""
        seconds = []
        for _ in range(repeats):
            ids = self._random(tokens, turn)
            self._synchronize()
            start = time.perf_counter()
            int(self._prompt(ids))
            seconds.append(time.perf_counter() - start)
        return {"each": seconds}

    @torch.inference_mode()
    def decode(self, how: str, rows: int, past: int, steps: int, warm: int, turn: int) -> dict[str, Any]:
        """``how``: run (each token comes to the host, as ``generate`` asks whether it ends the text), or greedy (the
        host waits for none of them before the last).
        """
        assert rows == 1 and how in ("run", "greedy"), (rows, how)
        token = self._prompt(self._random(past, turn))
        clock, tokens = Clock(), []
        for number in range(warm + steps + 1):
            token = self._next(token, past + number)
            if how == "run" or number in (warm, warm + steps):
                tokens.append(int(token))
                clock.mark()
        if how == "run":
            return {**clock.figures(warm), "tokens": tokens[:16]}
        return {**clock.figures(0), "steps": steps, "each": []}

    @torch.inference_mode()
    def profile(self, how: str, past: int, steps: int, turn: int) -> dict[str, Any]:
        """The device's kernels of ``steps`` decode steps, by name."""
        assert how in ("run", "greedy"), how
        token = self._prompt(self._random(past, turn))
        for number in range(4):
            token = self._next(token, past + number)

        def some() -> None:
            nonlocal token
            for number in range(4, 4 + steps):
                token = self._next(token, past + number)
                int(token)

        return traced(some, steps)

    def _prompt(self, ids: Tensor) -> Tensor:
        """The token after a prompt that begins anew: ``[1, 1]``."""
        self.cache.reset()
        return self._call(self.model, ids, 0)

    def _next(self, token: Tensor, position: int) -> Tensor:
        begin: Any = torch.compiler.cudagraph_mark_step_begin  # has no types
        begin()
        return self._call(self.step, token, position)

    def _call(self, model: Any, ids: Tensor, start: int) -> Tensor:
        positions = torch.arange(start, start + ids.shape[1], device=self.device)
        where = {"cache_position": positions} if self.positions else {}
        out = model(
            input_ids=ids, position_ids=positions[None], past_key_values=self.cache, use_cache=True, logits_to_keep=1,
            **where,
        )  # fmt: skip
        token: Tensor = out.logits[:, -1:].argmax(-1).clone()  # the graph's output is written over by the next step
        return token

    def _random(self, tokens: int, turn: int) -> Tensor:
        return torch.tensor(random_ids(self.model.config.vocab_size, 1, tokens, turn), device=self.device)

    def _synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


if __name__ == "__main__":
    serve(Transformers)
