"""The session over our own kernels: a bundle's native graphs, run by ONNX Runtime with the operators of ``kernels/``.

The kernels read the weights as the file has them, so a load maps the file and is done: nothing is packed, cached on
disk or copied. A token's logits, keys and values are the same bits however its text is split into calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from helium_onnx import contract, kernels
from helium_onnx.bundle import Bundle
from helium_onnx.contract import NativeGraph
from helium_onnx.progress import ProgressCallback, ProgressEvent, silent
from helium_onnx.runtimes.checked_files import check_digests
from helium_onnx.runtimes.graph_loading import (
    checked_context_length,
    checked_threads,
    load_graph,
    session_options,
    too_little_memory,
)
from helium_onnx.runtimes.key_value_cache import InPlaceCache, InPlacePast
from helium_onnx.runtimes.providers import CPU
from helium_onnx.runtimes.session import Past, Phase, closed

_GRAPHS: dict[Phase, NativeGraph] = {"prefill": "native_prefill", "decode": "native_decode"}
#: Widths of calls whose bindings a past keeps: one token, and a verified draft.
_KEPT_WIDTHS = 32


def can_run(bundle: Bundle) -> bool:
    """Whether the bundle has native graphs and this machine the kernels."""
    return set(contract.NATIVE_GRAPHS) <= set(bundle.manifest.graphs) and kernels.library() is not None


@dataclass(slots=True)
class _Call:
    """A bound call of one graph at one width: its arrays are filled and read in place.

    ``past_lengths`` are the past's own, so nothing copies them.
    """

    run: Callable[[ort.IOBinding], None]
    binding: ort.IOBinding
    input_ids: NDArray[np.int64]
    past_lengths: NDArray[np.int64]
    logits: NDArray[np.float32]


class NativeSession:
    """Runs the native graphs of one bundle (a ``Session`` of the seam). Both are ready on return.

    ``context_length`` bounds prompt and generated tokens (default: the model's). ``threads`` defaults to the physical
    cores that the process may use. ``spin``: threads wait for the next operator by spinning, which is faster and keeps
    their cores busy between tokens; False for machines on battery.
    """

    exact_split = 1

    def __init__(
        self,
        bundle: Bundle,
        *,
        context_length: int | None = None,
        threads: int | None = None,
        spin: bool = True,
        cache_dir: Path | None = None,
        progress: ProgressCallback = silent,
    ) -> None:
        self.bundle = bundle
        config = bundle.model_config
        self.vocab_size = int(config["vocab_size"])
        self.context_length = checked_context_length(context_length, int(config["max_position_embeddings"]))
        self.threads = checked_threads(threads)
        specs = bundle.manifest.graphs["native_decode"].inputs
        self._past_specs = tuple(spec for spec in specs if spec.name.startswith("past_key_values."))
        self._cache = InPlaceCache(self._past_specs, self.context_length)
        self._adapter: Mapping[str, NDArray[np.float32]] = {}
        check_digests(bundle, cache_dir, progress)
        progress(ProgressEvent("load", ", ".join(bundle.graph_path(graph).name for graph in _GRAPHS.values())))
        self._sessions = {phase: self._load(phase, spin) for phase in _GRAPHS}

    def use_adapter(self, matrices: Mapping[str, NDArray[np.float32]]) -> None:
        """See ``AdaptableSession.use_adapter``."""
        self._adapter = matrices

    def new_past(self, rows: int) -> Past:
        """An empty past of ``rows`` rows; buffers are those of earlier calls where they are large enough."""
        self._check_open()
        try:
            return InPlacePast(self._cache.buffers(rows), np.zeros(rows, np.int64))
        except MemoryError as error:
            raise too_little_memory(self._past_specs, rows, self.context_length, error) from error

    def run(self, phase: Phase, input_ids: NDArray[np.int64], past: Past) -> NDArray[np.float32]:
        """See ``Session.run``. A prefill runs in chunks of the provider's size."""
        assert isinstance(past, InPlacePast)
        if phase == "decode":
            call: _Call | None = past.bindings.get("token")
            if call is None or input_ids.size != 1 or call.past_lengths is not past.lengths or not self._sessions:
                return self._step(phase, input_ids, past)
            # What ``_step`` does, for one token of one row: of a small model, each line counts.
            length = call.past_lengths.item()
            assert length < self.context_length, "the past is full"
            call.input_ids[0, 0] = input_ids[0, 0]
            call.run(call.binding)
            call.past_lengths[0] = length + 1
            return call.logits
        new = input_ids.shape[1]
        for start in range(0, new - CPU.prefill_chunk, CPU.prefill_chunk):
            self._step(phase, input_ids[:, start : start + CPU.prefill_chunk], past)
        return self._step(phase, input_ids[:, (new - 1) // CPU.prefill_chunk * CPU.prefill_chunk :], past)

    def wait(self) -> None:
        """Return when both graphs are loaded, which they are."""
        self._check_open()

    def close(self) -> None:
        """Free the sessions' memory. The session cannot run afterwards."""
        self._sessions.clear()
        self.__dict__.pop("_cache", None)

    def _check_open(self) -> None:
        if not self._sessions:
            raise closed()

    def _step(self, phase: Phase, input_ids: NDArray[np.int64], past: InPlacePast) -> NDArray[np.float32]:
        self._check_open()
        rows, new = input_ids.shape
        lengths = past.lengths
        assert rows == len(lengths)
        assert int(lengths.max()) + new <= self.context_length, "the past is full"
        call: _Call | None = past.bindings.get((phase, new))
        if call is None or call.past_lengths is not lengths:
            call = self._bind(phase, new, past)
            if new <= _KEPT_WIDTHS:
                past.bindings[phase, new] = call
                if phase == "decode" and rows == new == 1:
                    past.bindings["token"] = call
        call.input_ids[:] = input_ids
        call.run(call.binding)
        lengths += new
        return call.logits

    def _bind(self, phase: Phase, new: int, past: InPlacePast) -> _Call:
        """Each past and its present are one buffer; a call of the same width then binds nothing again."""
        rows = len(past.lengths)
        positions = 1 if phase == "prefill" else new
        session = self._sessions[phase]
        binding = session.io_binding()
        call = _Call(
            session.run_with_iobinding,
            binding,
            np.empty((rows, new), np.int64),
            past.lengths,
            np.empty((rows, positions, self.vocab_size), np.float32),
        )

        def bind(how: Any, name: str, array: NDArray[Any]) -> None:
            how(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

        bind(binding.bind_input, "input_ids", call.input_ids)
        bind(binding.bind_input, "past_lengths", call.past_lengths)
        bind(binding.bind_output, "logits", call.logits)
        for name, matrix in self._adapter.items():
            bind(binding.bind_input, name, matrix)
        for spec, buffer in zip(self._past_specs, past.buffers, strict=True):
            bind(binding.bind_input, spec.name, buffer)
            bind(binding.bind_output, spec.name.replace("past_key_values", "present"), buffer)
        return call

    def _load(self, phase: Phase, spin: bool) -> ort.InferenceSession:
        options = session_options(CPU, self.threads)
        options.register_custom_ops_library(str(kernels.LIBRARY))
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
        if phase == "prefill":
            # Its threads would go on spinning when it is done, on the cores that decode's threads then need.
            options.add_session_config_entry("session.force_spinning_stop", "1")
        graph = _GRAPHS[phase]
        return load_graph(self.bundle.graph_path(graph), options, CPU, self.bundle, self.bundle.manifest.graphs[graph])
