"""The session over ONNX Runtime: the prefill and decode graphs of a bundle, one copy of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from helium_onnx.bundle import Bundle
from helium_onnx.progress import ProgressCallback, ProgressEvent, silent
from helium_onnx.runtimes.graph_loading import (
    checked_context_length,
    checked_threads,
    load_graph,
    session_options,
    too_little_memory,
)
from helium_onnx.runtimes.key_value_cache import GrowingPast, InPlaceCache, InPlacePast
from helium_onnx.runtimes.memory import recycled_memory, return_freed_memory
from helium_onnx.runtimes.prepacked import PrepackedCache
from helium_onnx.runtimes.providers import execution_provider
from helium_onnx.runtimes.session import Past, Phase, closed


class OnnxRuntimeSession:
    """Runs one bundle (a ``Session`` of the seam).

    ``context_length`` bounds prompt and generated tokens (default: the model's). ``threads`` defaults to the physical
    cores that the process may use. ``cache`` keeps prepacked weights on this machine: True, False, or None for where
    it pays (see prepacked.py). ``spin`` as for NativeSession. The prefill session is ready on return; the decode
    session loads beside the first prefill: ``wait`` and ``run`` wait for it, and raise what its load raised.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        provider: str = "cpu",
        context_length: int | None = None,
        threads: int | None = None,
        spin: bool = True,
        cache: bool | None = None,
        cache_dir: Path | None = None,
        progress: ProgressCallback = silent,
    ) -> None:
        self.bundle = bundle
        self.provider = execution_provider(provider)
        config = bundle.model_config
        self.vocab_size = int(config["vocab_size"])
        self.context_length = checked_context_length(context_length, int(config["max_position_embeddings"]))
        self.threads = checked_threads(threads)
        self._spin = spin
        self._in_place = bundle.manifest.recipe["graph"]["operators"] == "onnxruntime"
        graphs: dict[Phase, Path] = {phase: bundle.graph_path(phase) for phase in ("prefill", "decode")}
        specs = bundle.manifest.graphs["decode"].inputs
        self._past_specs = tuple(spec for spec in specs if spec.name.startswith("past_key_values."))
        self._past_names = [spec.name for spec in self._past_specs]
        self._present_names = [name.replace("past_key_values", "present") for name in self._past_names]
        self._cache = InPlaceCache(self._past_specs, self.context_length)
        self._adapter: Mapping[str, NDArray[np.float32]] = {}
        self._ones = np.ones((1, self.context_length), np.int64)

        packed = PrepackedCache(bundle, cache_dir)
        wanted = self.provider.prepacks and (packed.pays() if cache is None else cache)
        optimized = wanted and packed.prepare(lambda: session_options(self.provider, self.threads), progress)
        if optimized:
            graphs = {phase: packed.graph_path(phase) for phase in graphs}
        elif not wanted:
            # A changed bit in the weights would load silently and speak nonsense. The cache's way hashes only once.
            bundle.check_digests()
        progress(ProgressEvent("load", "prefill.onnx, decode.onnx"))
        prefill: Future[ort.InferenceSession] = Future()
        prefill.set_result(self._load("prefill", graphs["prefill"], optimized))
        loader = ThreadPoolExecutor(1, thread_name_prefix="helium-onnx-load")
        decode = loader.submit(self._load, "decode", graphs["decode"], optimized)
        loader.shutdown(wait=False)
        self._sessions: dict[Phase, Future[ort.InferenceSession]] = {"prefill": prefill, "decode": decode}

    @property
    def exact_split(self) -> int:
        """See ``Session.exact_split``: ONNX Runtime's kernels round otherwise for one row than for several."""
        return self.provider.prefill_chunk

    def use_adapter(self, matrices: Mapping[str, NDArray[np.float32]]) -> None:
        """See ``AdaptableSession.use_adapter``."""
        self._adapter = matrices

    def new_past(self, rows: int) -> Past:
        """An empty past of ``rows`` rows; buffers are those of earlier calls where they are large enough."""
        self._check_open()
        lengths = np.zeros(rows, np.int64)
        if not self._in_place:
            return GrowingPast.empty(self._past_specs, rows)
        try:
            return InPlacePast(self._cache.buffers(rows), lengths)
        except MemoryError as error:
            raise too_little_memory(self._past_specs, rows, self.context_length, error) from error

    def run(self, phase: Phase, input_ids: NDArray[np.int64], past: Past) -> NDArray[np.float32]:
        """See ``Session.run``. A prefill runs in chunks of the provider's size."""
        assert input_ids.ndim == 2
        assert len(input_ids) == len(past.lengths)
        assert int(past.lengths.max()) + input_ids.shape[1] <= self.context_length, "the past is full"
        step = self._run_in_place if isinstance(past, InPlacePast) else self._run_growing
        if phase == "decode":
            return step(phase, input_ids, past)
        chunk = self.provider.prefill_chunk
        # Borders lie at multiples of the chunk in the row, so that a restored prefix leads to the very same calls.
        first = chunk - int(past.lengths[0]) % chunk
        logits = step(phase, input_ids[:, :first], past)
        for start in range(first, input_ids.shape[1], chunk):
            logits = step(phase, input_ids[:, start : start + chunk], past)
        return logits

    def wait(self) -> None:
        """Return when the decode session is loaded too; raise what its load raised."""
        self._session("decode")

    def close(self) -> None:
        """Free the sessions' memory. The session cannot run afterwards."""
        for future in self._sessions.values():
            future.cancel()
        self._sessions.clear()
        self.__dict__.pop("_cache", None)

    def _session(self, phase: Phase) -> ort.InferenceSession:
        self._check_open()
        return self._sessions[phase].result()

    def _check_open(self) -> None:
        if not self._sessions:
            raise closed()

    def _run_in_place(self, phase: Phase, input_ids: NDArray[np.int64], past: Past) -> NDArray[np.float32]:
        assert isinstance(past, InPlacePast)
        rows, new = input_ids.shape
        assert rows == 1 or new == 1, "the kernel takes several tokens after a past for one row only"
        session = self._session(phase)
        binding = past.bindings.get(phase)
        if binding is None:
            binding = past.bindings[phase] = self._bind(session, past)
        ids = np.ascontiguousarray(input_ids)
        after = past.lengths + new
        total = int(after.max())
        mask = self._ones[:, :total] if rows == 1 else (np.arange(total) < after[:, None]).astype(np.int64)
        logits = np.empty((rows, 1 if phase == "prefill" else new, self.vocab_size), np.float32)
        for name, array in (("input_ids", ids), ("attention_mask", mask)):
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        binding.bind_output("logits", "cpu", 0, logits.dtype, logits.shape, logits.ctypes.data)
        session.run_with_iobinding(binding)
        past.lengths += new
        return logits

    def _bind(self, session: ort.InferenceSession, past: InPlacePast) -> ort.IOBinding:
        """A binding in which each past and its present are one buffer; a step then binds only what changes."""
        binding = session.io_binding()
        for name, matrix in self._adapter.items():
            binding.bind_input(name, "cpu", 0, matrix.dtype, matrix.shape, matrix.ctypes.data)
        for name, buffer in zip(self._past_names, past.buffers, strict=True):
            binding.bind_input(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
        for name, buffer in zip(self._present_names, past.buffers, strict=True):
            binding.bind_output(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
        return binding

    def _run_growing(self, phase: Phase, input_ids: NDArray[np.int64], past: Past) -> NDArray[np.float32]:
        """Row by row: rows of different length cannot share a tensor that has no slots."""
        assert isinstance(past, GrowingPast)
        session = self._session(phase)
        results = []
        for row, tensors in enumerate(past.tensors):
            length = int(past.lengths[row])
            feed: dict[str, NDArray[Any]] = {
                "input_ids": np.ascontiguousarray(input_ids[row : row + 1]),
                "attention_mask": self._ones[:, : length + input_ids.shape[1]],
                **self._adapter,
            }
            # A length that was set back forgets the last tokens.
            feed.update(zip(self._past_names, (t[:, :, :length] for t in tensors), strict=True))
            logits, *present = session.run(["logits", *self._present_names], feed)
            tensors[:] = present
            results.append(logits)
        past.lengths += input_ids.shape[1]
        return np.concatenate(results)

    def _load(self, phase: Phase, path: Path, optimized: bool) -> ort.InferenceSession:
        options = session_options(self.provider, self.threads)
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if self._spin else "0")
        if optimized:  # for this machine, when the cache was made
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if phase == "prefill":
            # Packing (to compare with the cache) on all threads: the first token waits for it. The decode session
            # loads beside the first prefill, and then more threads would only take its cores, and 40 MB.
            options.add_session_config_entry("session.prepack.enable_parallel", "1")
        recycled = recycled_memory() if optimized and phase == "prefill" else contextlib.nullcontext()
        with recycled:
            session = load_graph(path, options, self.provider, self.bundle, self.bundle.manifest.graphs[phase])
        if phase == "decode":  # the last of the two
            return_freed_memory()
        return session
