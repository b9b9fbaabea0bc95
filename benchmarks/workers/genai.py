"""The worker of onnxruntime-genai; runs in that package's own environment.

Settings: ``chunk_size``, tokens of a prefill that are computed at once (absent: all).
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import onnxruntime_genai as og
from serving import Arguments, serve


class GenAI:
    """One row, greedily."""

    def __init__(self, arguments: Arguments) -> None:
        config = og.Config(arguments.path)
        # Its default is one thread.
        overlay = {"model": {"decoder": {"session_options": {"intra_op_num_threads": arguments.threads}}}}
        config.overlay(json.dumps(overlay))
        if "chunk_size" in arguments.settings:
            config.overlay(json.dumps({"search": {"chunk_size": arguments.settings["chunk_size"]}}))
        self.model = og.Model(config)
        self.context = arguments.context

    def generate(self, ids: list[int], new: int, emit: Callable[[int], None]) -> None:
        params = og.GeneratorParams(self.model)
        params.set_search_options(max_length=self.context, do_sample=False)
        generator = og.Generator(self.model, params)
        generator.append_tokens(np.asarray(ids, np.int32))
        for _ in range(new + 1):  # after </s> it gives padding, but computes on: times stay comparable (measured)
            generator.generate_next_token()
            emit(int(generator.get_next_tokens()[0]))


if __name__ == "__main__":
    serve(GenAI)
