"""The worker of llama.cpp, through llama-cpp-python's bindings of its C API; runs in that package's own environment.

Settings: fields of ``llama_context_params`` and ``llama_model_params`` (``n_ubatch``, ``flash_attn_type``,
``use_extra_bufts`` ...) over llama.cpp's own defaults.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import ctypes
from collections.abc import Callable

import llama_cpp as c
import numpy as np
from serving import Arguments, serve

_quiet = c.llama_log_callback(lambda _level, _text, _data: None)


class LlamaCpp:
    """One sequence, greedily."""

    def __init__(self, arguments: Arguments) -> None:
        c.llama_log_set(_quiet, ctypes.c_void_p(0))
        c.llama_backend_init()
        model_params, params = c.llama_model_default_params(), c.llama_context_default_params()
        params.n_ctx = arguments.context
        params.n_threads = params.n_threads_batch = arguments.threads
        for name, value in arguments.settings.items():
            place = params if hasattr(params, name) else model_params
            assert hasattr(place, name), name
            setattr(place, name, value)
        self.model = c.llama_model_load_from_file(arguments.path.encode(), model_params)
        self.context = c.llama_init_from_model(self.model, params)
        assert self.context, "llama.cpp made no context"
        self.about = c.llama_print_system_info().decode()
        self.memory = c.llama_get_memory(self.context)
        self.vocab_size = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self.model))

    def generate(self, ids: list[int], new: int, emit: Callable[[int], None]) -> None:
        c.llama_memory_clear(self.memory, True)
        token = self._run(ids)
        emit(token)
        for _ in range(new):
            token = self._run([token])
            emit(token)

    def _run(self, ids: list[int]) -> int:
        tokens = (c.llama_token * len(ids))(*ids)
        status = c.llama_decode(self.context, c.llama_batch_get_one(tokens, len(ids)))
        assert status == 0, status
        logits = c.llama_get_logits_ith(self.context, -1)
        return int(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax())


if __name__ == "__main__":
    serve(LlamaCpp)
