"""The worker of optimum-onnx: ``ORTModelForCausalLM`` over one of our bundles; runs in that package's environment.

Settings: ``use_io_binding``.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from collections.abc import Callable

import onnxruntime
import torch
from optimum.onnxruntime import ORTModelForCausalLM
from serving import Arguments, serve


class Optimum:
    """One row, greedily, by the calls that ``generate`` makes."""

    def __init__(self, arguments: Arguments) -> None:
        torch.set_num_threads(arguments.threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = arguments.threads
        self.model = ORTModelForCausalLM.from_pretrained(
            arguments.path, subfolder="onnx", file_name="model.onnx", session_options=options, **arguments.settings
        )

    def generate(self, ids: list[int], new: int, emit: Callable[[int], None]) -> None:
        tokens, past = torch.tensor([ids]), None
        for length in range(len(ids), len(ids) + new + 1):
            mask = torch.ones((1, length), dtype=torch.int64)
            out = self.model(input_ids=tokens, attention_mask=mask, past_key_values=past, use_cache=True)
            tokens, past = out.logits[:, -1:].argmax(-1), out.past_key_values
            emit(int(tokens))


if __name__ == "__main__":
    serve(Optimum)
