"""The worker of transformers: the checkpoint in PyTorch, on the CPU; runs in that package's own environment.

Settings: ``dtype``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from serving import Arguments, serve
from transformers import AutoModelForCausalLM, DynamicCache


class Transformers:
    """One row, greedily, by the calls that ``generate`` makes."""

    def __init__(self, arguments: Arguments) -> None:
        torch.set_num_threads(arguments.threads)
        dtype = getattr(torch, arguments.settings["dtype"])
        self.model = AutoModelForCausalLM.from_pretrained(arguments.path, dtype=dtype).eval()

    @torch.inference_mode()
    def generate(self, ids: list[int], new: int, emit: Callable[[int], None]) -> None:
        tokens, past = torch.tensor([ids]), DynamicCache()
        for _ in range(new + 1):
            out = self.model(tokens, past_key_values=past, use_cache=True, logits_to_keep=1)
            tokens = out.logits[:, -1:].argmax(-1)
            emit(int(tokens))


if __name__ == "__main__":
    serve(Transformers)
