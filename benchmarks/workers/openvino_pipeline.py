"""The worker of OpenVINO GenAI: its ``LLMPipeline`` over what optimum-intel exported; runs in that environment.

Settings: properties of the pipeline and of OpenVINO's CPU plugin (``ATTENTION_BACKEND`` ...), and ``scheduler``, fields
of ``SchedulerConfig`` for paged attention.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino_genai
from openvino import Tensor
from serving import Arguments, serve


class Emitter(openvino_genai.StreamerBase):  # type: ignore[misc]
    """Hands over each token when it is there."""

    def __init__(self, emit: Callable[[int], None]) -> None:
        super().__init__()
        self.emit = emit

    def write(self, token: int | list[int]) -> openvino_genai.StreamingStatus:
        for one in [token] if isinstance(token, int) else token:
            self.emit(one)
        return openvino_genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """Nothing is held back."""


class OpenVino:
    """One sequence, greedily."""

    def __init__(self, arguments: Arguments) -> None:
        properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": arguments.threads, "PERFORMANCE_HINT": "LATENCY"}
        properties |= arguments.settings
        if "scheduler" in properties:
            properties["scheduler_config"] = openvino_genai.SchedulerConfig()
            for name, value in properties.pop("scheduler").items():
                setattr(properties["scheduler_config"], name, value)
        self.pipeline = openvino_genai.LLMPipeline(arguments.path, "CPU", **properties)

    def generate(self, ids: list[int], new: int, emit: Callable[[int], None]) -> None:
        prompt = openvino_genai.TokenizedInputs(Tensor(np.array([ids])), Tensor(np.ones((1, len(ids)), np.int64)))
        config = openvino_genai.GenerationConfig(max_new_tokens=new + 1, ignore_eos=True, do_sample=False)
        self.pipeline.generate(prompt, config, Emitter(emit))


if __name__ == "__main__":
    serve(OpenVino)
