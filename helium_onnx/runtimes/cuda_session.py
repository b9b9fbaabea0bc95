"""The session over a GPU: one copy of the weights there, decode steps as captured CUDA graphs, several in flight.

All work goes to one stream, in order; the host waits where it needs a result, and in ``greedy`` for the oldest of a few
steps. Each thread that runs a session captures its graphs anew, which takes some steps: better use one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from helium_onnx.bundle import Bundle
from helium_onnx.errors import GenerationError, ProviderError
from helium_onnx.progress import ProgressCallback, ProgressEvent, silent
from helium_onnx.runtimes import cuda_memory
from helium_onnx.runtimes.checked_files import check_digests
from helium_onnx.runtimes.cuda_calls import Call
from helium_onnx.runtimes.cuda_device import Device, NativeKernels
from helium_onnx.runtimes.device_buffers import DeviceBuffers, HostBuffers
from helium_onnx.runtimes.device_cache import DeviceCache, DevicePast
from helium_onnx.runtimes.device_weights import DeviceWeights
from helium_onnx.runtimes.graph_loading import checked_context_length, session_options
from helium_onnx.runtimes.providers import CUDA
from helium_onnx.runtimes.session import Past, Phase, closed

#: Greedy steps that the device has before it at a time. One runs and one waits behind it while the host reads the token
#: of the one before, and its text: that would do for a host that is never late. A third bears with a pause of a whole
#: step, as a garbage collection makes one. All but the first are computed in vain where a text ends.
STEPS_IN_FLIGHT = 3


class CudaSession:
    """Runs a CUDA bundle on ``device`` (a ``Session`` and a ``GreedySession`` of the seam), which it closes.

    ``context_length`` bounds prompt and generated tokens (default: the model's). ``native``: whether decode steps use
    our own operators: True (ProviderError where they cannot), False, or None for where bundle and device have them.
    decode.onnx is then loaded when it is first needed: for several tokens of a row, or for many rows.

    Raises:
        ResourceError: the device has too little memory; it says what would fit.
        ProviderError: the provider did not start, or does not take every node.
        BundleError, IntegrityError: the bundle is not whole.
    """

    #: Prefill calls are cut at multiples of it. A call repeated over the same keys and values gives the same bits:
    #: attention's kernels and cuBLAS on one stream add in a fixed order (cuBLAS documents it as "results
    #: reproducibility"). One of another width is computed by other kernels, and rounded otherwise.
    exact_split = CUDA.prefill_chunk

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        *,
        context_length: int | None = None,
        native: bool | None = None,
        cache_dir: Path | None = None,
        progress: ProgressCallback = silent,
    ) -> None:
        self.bundle = bundle
        self._device, self._driver, self._stream = device, device.driver, device.stream
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._steps: dict[int, Call] = {}  # by rows: one token each
        self._others: dict[tuple[str, int], Call] = {}  # by graph and row: any tokens of one row
        self._events: list[int] = []
        self._weights: DeviceWeights | None = None
        self._cache: DeviceCache | None = None
        self._buffers, self._host = DeviceBuffers(device), HostBuffers(device)
        self._closed = False
        self._busy = False  # whether the stream may still read what the host has given it
        try:
            config = bundle.model_config
            self.vocab_size = int(config["vocab_size"])
            self.context_length = checked_context_length(context_length, int(config["max_position_embeddings"]))
            specs = bundle.manifest.graphs["decode"].inputs
            self._past_specs = tuple(spec for spec in specs if spec.name.startswith("past_key_values."))
            free_bytes, _ = self._driver.memory()
            cuda_memory.check_load(bundle, self._driver.info(), free_bytes, context_length=self.context_length)
            check_digests(bundle, cache_dir, progress)
            self._kernels = _native_kernels(bundle, device, native, cache_dir, progress)
            decode = "decode" if self._kernels is None else "native_decode"
            self._weights = DeviceWeights(bundle, {"prefill", "decode", decode}, device, progress)
            for graph in ("prefill", decode):
                self._session(graph, progress)
            self._reserve()
        except BaseException:
            self.close()
            raise

    def wait(self) -> None:
        """Return when the graphs are loaded, which they are."""
        self._check_open()

    def new_past(self, rows: int) -> Past:
        """An empty past of ``rows`` rows; buffers are those of earlier calls where they are large enough."""
        self._check_open()
        self._finish()
        if self._cache is None or self._cache.rows < rows:
            held = 0 if self._cache is None else self._cache.nbytes
            free_bytes = self._driver.memory()[0] + held
            cuda_memory.check_rows(
                self.bundle, self._driver.info(), free_bytes, rows=rows, context_length=self.context_length
            )
            self._free_cache()  # first: both at once would double the peak
            self._cache = DeviceCache(self._device, self._past_specs, self.context_length, self.vocab_size, rows)
        return DevicePast(self._cache, 0, np.zeros(rows, np.int64))

    def run(self, phase: Phase, input_ids: NDArray[np.int64], past: Past) -> NDArray[np.float32]:
        """See ``Session.run``. A prefill runs in chunks of the provider's size."""
        assert isinstance(past, DevicePast)
        self._check_open()
        self._finish()
        rows, new = input_ids.shape
        assert past.cache is self._cache and rows == len(past.lengths)
        assert int(past.lengths.max()) + new <= self.context_length, "the past is full"
        if phase == "decode" and new == 1 and past.first == 0:
            return self._step(input_ids, past)
        assert rows == 1, "the kernel takes several tokens after a past for one row only"
        if phase == "decode":
            return self._several("decode", input_ids, past, positions=new)
        # Borders lie at multiples of the chunk in the row, so that a restored prefix leads to the very same calls.
        chunk = self.exact_split
        first = chunk - int(past.lengths[0]) % chunk
        logits = self._several("prefill", input_ids[:, :first], past, positions=1)
        for start in range(first, new, chunk):
            logits = self._several("prefill", input_ids[:, start : start + chunk], past, positions=1)
        return logits

    def greedy(self, input_ids: NDArray[np.int64], past: Past) -> Generator[NDArray[np.int64], None, None]:
        """See ``GreedySession.greedy``: STEPS_IN_FLIGHT steps are on the device while the host waits for the oldest."""
        assert isinstance(past, DevicePast)
        self._check_open()
        self._finish()
        assert past.cache is self._cache and past.first == 0 and input_ids.shape == (len(past.lengths), 1)
        driver, stream, lengths, context = self._driver, self._stream, past.lengths, self.context_length
        if int(lengths.max()) >= context:
            return
        call = self._ready(input_ids, past)
        rows = len(lengths)
        # A slot of a ring is one step's, from its upload to its event.
        seqlens_k = self._host.get("greedy seqlens_k", "int32", STEPS_IN_FLIGHT, rows)
        next_ids = self._host.get("greedy next_token_ids", "int64", STEPS_IN_FLIGHT, rows)
        while len(self._events) < STEPS_IN_FLIGHT:
            self._events.append(driver.new_event())
        started = finished = 0
        try:
            while True:
                while started - finished < STEPS_IN_FLIGHT and int(lengths.max()) + started - finished < context:
                    slot = started % STEPS_IN_FLIGHT
                    seqlens_k[slot] = lengths + (started - finished)
                    self._busy = True
                    driver.to_device(past.cache.seqlens_k.address, seqlens_k[slot], stream)
                    call.run()
                    driver.from_device(next_ids[slot], past.cache.input_ids.address, stream)
                    driver.record(self._events[slot], stream)
                    started += 1
                if started == finished:
                    return
                slot = finished % STEPS_IN_FLIGHT
                driver.wait(self._events[slot])
                token_ids: NDArray[np.int64] = next_ids[slot].copy()
                if int(token_ids.min()) < 0:
                    raise _no_numbers(token_ids)
                finished += 1
                lengths += 1
                yield token_ids
        finally:
            # What ran further has written slots behind the lengths; they will be written again.
            if not self._closed:
                driver.synchronize(stream)

    def close(self) -> None:
        """Free the device's memory. The session cannot run afterwards."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(ProviderError):  # of a device that has failed; closing lets go of what it can
            self._driver.synchronize(self._stream)
            self._free_cache()
            self._sessions.clear()
            self._buffers.free()
            if self._weights is not None:
                self._weights.free()
        self._sessions.clear()
        self._device.close()

    def _step(self, input_ids: NDArray[np.int64], past: DevicePast) -> NDArray[np.float32]:
        """One token for each row."""
        call, cache, rows = self._ready(input_ids, past), past.cache, len(input_ids)
        logits: NDArray[np.float32] = self._host.get("logits", "float32", rows, 1, self.vocab_size)
        call.run()
        self._driver.from_device(logits, cache.logits.address, self._stream)
        self._finish()
        past.lengths += 1
        return logits

    def _ready(self, input_ids: NDArray[np.int64], past: DevicePast) -> Call:
        """The captured step of as many rows, with its inputs on their way."""
        rows, cache = len(input_ids), past.cache
        call = self._steps.get(rows)
        if call is None:
            native = self._kernels is not None and rows <= self._kernels.max_rows
            graph = "native_decode" if native else "decode"
            caches = tuple(tensor.rows(0, rows) for tensor in cache.tensors)
            call = Call(self._device, self._session(graph), self.bundle.manifest.graphs[graph], caches, captured=True)
            ids = cache.input_ids.rows(0, rows)
            call.place(
                {
                    "input_ids": ids,
                    "next_token_ids": ids,  # a greedy step feeds the next one without the host
                    "seqlens_k": cache.seqlens_k.rows(0, rows),
                    "logits": cache.logits.rows(0, rows),
                },
                self.context_length,  # of the buffers: a replay has the value of its capture, and must be right later
            )
            self._steps[rows] = call
        self._finish()
        ids_given = self._host.get("input_ids", "int64", rows)
        lengths_given = self._host.get("seqlens_k", "int32", rows)
        ids_given[:] = input_ids[:, 0]
        lengths_given[:] = past.lengths

        def set_inputs() -> None:
            self._driver.to_device(cache.input_ids.address, ids_given, self._stream)
            self._driver.to_device(cache.seqlens_k.address, lengths_given, self._stream)

        self._busy = True
        call.capture(set_inputs)
        set_inputs()
        return call

    def _several(
        self, graph: str, input_ids: NDArray[np.int64], past: DevicePast, *, positions: int
    ) -> NDArray[np.float32]:
        """Tokens of one row, not captured; the logits of the last ``positions`` of them."""
        new, length, cache = input_ids.shape[1], int(past.lengths[0]), past.cache
        call = self._others.get((graph, past.first))
        if call is None:
            caches = tuple(tensor.rows(past.first, 1) for tensor in cache.tensors)
            call = Call(self._device, self._session(graph), self.bundle.manifest.graphs[graph], caches, captured=False)
            self._others[graph, past.first] = call
        tensors = {
            "input_ids": self._buffers.get("input_ids", "int64", 1, new),
            "seqlens_k": self._buffers.get("seqlens_k", "int32", 1),
            "logits": self._buffers.get("logits", "float32", 1, positions, self.vocab_size),
            "next_token_ids": self._buffers.get("next_token_ids", "int64", 1, positions),
        }
        # Here the true length: a kernel that knows it to be all new tokens need not look for a past.
        call.place(tensors, length + new)
        ids_given = self._host.get("input_ids", "int64", 1, new)
        length_given = self._host.get("seqlens_k", "int32", 1)
        ids_given[:] = input_ids
        length_given[:] = length + new - 1
        logits: NDArray[np.float32] = self._host.get("logits", "float32", 1, positions, self.vocab_size)
        self._busy = True
        self._driver.to_device(tensors["input_ids"].address, ids_given, self._stream)
        self._driver.to_device(tensors["seqlens_k"].address, length_given, self._stream)
        call.run()
        self._driver.from_device(logits, tensors["logits"].address, self._stream)
        self._finish()
        past.lengths += new
        return logits

    def _session(self, graph: str, progress: ProgressCallback = silent) -> ort.InferenceSession:
        session = self._sessions.get(graph)
        if session is None:
            assert self._weights is not None
            progress(ProgressEvent("load", self.bundle.graph_path(graph).name))
            options = session_options(self._device.row, 1)  # nothing computes on the host
            # A pattern is one block for all activations of a shape, beside what the arena holds for others already.
            options.enable_mem_pattern = False
            self._weights.add_to(options, graph)
            if graph == "native_decode":
                assert self._kernels is not None
                options.register_custom_ops_library(str(self._kernels.library))
            session = self._device.load(options, self.bundle, graph, captures=graph != "prefill")
            self._sessions[graph] = session
        return session

    def _reserve(self) -> None:
        """Run the largest prefill call once, for the memory that it takes, and keeps.

        ONNX Runtime's arena never gives back, and what it took for a call is of no use for one that is a little larger:
        texts that grow from call to call would take the sum of them all. Too little memory shows now, and not in the
        middle of a text; libraries load their kernels, which the first text would have waited for.

        With int8 keys and values a call that has a past takes more than the first one (cuda_memory.py): two are run.
        """
        past = self.new_past(1)
        calls = 2 if self._past_specs[0].dtype == "int8" else 1
        self.run("prefill", np.zeros((1, min(calls * self.exact_split, self.context_length)), np.int64), past)

    def _finish(self) -> None:
        """Wait for what is on the stream, where there may be something."""
        if self._busy:
            self._driver.synchronize(self._stream)
            self._busy = False

    def _free_cache(self) -> None:
        for call in self._steps.values():
            call.release()
        self._steps.clear()
        self._others.clear()
        cache, self._cache = self._cache, None
        if cache is not None:
            cache.free()

    def _check_open(self) -> None:
        if self._closed:
            raise closed()


def _native_kernels(
    bundle: Bundle, device: Device, native: bool | None, cache_dir: Path | None, progress: ProgressCallback
) -> NativeKernels | None:
    """As the session's ``native`` says."""
    if native is False:
        return None
    if "native_decode" not in bundle.manifest.graphs:
        kernels, problem, remedy = None, "a bundle without decode.native.onnx", "export it anew with this version"
    else:
        progress(ProgressEvent("load", "our own kernels for this GPU"))
        kernels = device.kernels(cache_dir, quantized=cuda_memory.recipe_of(bundle).quantization.method != "none")
        problem, remedy = device.kernels_problem() or "no reason given", "leave the kernels to ONNX Runtime"
    if kernels is None and native:
        raise ProviderError("native kernels cannot run this", found=problem, remedy=remedy)
    if kernels is None:
        progress(ProgressEvent("load", f"ONNX Runtime's kernels instead of our own: {problem}"))
    return kernels


def _no_numbers(token_ids: NDArray[np.int64]) -> GenerationError:
    """What the sampler says of logits that are no numbers: the device's argmax has none among them, and gives -1."""
    rows = ", ".join(str(row) for row in np.flatnonzero(token_ids < 0))
    return GenerationError(
        "The model gave no usable logits",
        found=f"no largest one in row {rows}",
        expected="finite numbers",
        remedy="validate the bundle; a half-precision one may overflow: try fp32 or bf16",
    )
