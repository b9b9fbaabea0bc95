"""A device for CudaSession without a GPU: the host's memory, ONNX Runtime's CPU provider, and a stream between them.

Runs are put on the stream as copies are, and a captured graph behaves as on CUDA: it belongs to its thread, the runs
until it is captured compute twice over, and from then on the binding of its capture is replayed.
"""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from fake_cuda import FakeCudaDriver
from numpy.typing import NDArray

from helium_onnx.bundle import Bundle
from helium_onnx.errors import ResourceError
from helium_onnx.runtimes.cuda_device import NativeKernels
from helium_onnx.runtimes.graph_loading import load_graph
from helium_onnx.runtimes.providers import CPU

_RUNS_UNTIL_CAPTURE = 3


class HostDevice:
    """``loaded`` lists the graphs that sessions were made of; for the native one, decode.onnx stands in."""

    kind, index = "cpu", 0

    def __init__(self, *, lazy: bool = False, native: NativeKernels | None = None, **driver: Any) -> None:
        self.driver = FakeCudaDriver(lazy=lazy, **driver)
        self.row = dataclasses.replace(CPU, config={"session.record_ep_graph_assignment_info": "1"})
        self.stream = self.driver.new_stream()
        self.native = native
        self.loaded: list[str] = []
        self.sessions: dict[str, StreamSession] = {}
        self.held: dict[int, NDArray[np.uint8]] = {}  # device memory, by address
        self.most_bytes = self.driver.total_bytes
        self.closed = False

    @property
    def held_bytes(self) -> int:
        return sum(memory.nbytes for memory in self.held.values())

    def allocate(self, nbytes: int) -> int:
        if self.held_bytes + nbytes > self.most_bytes:
            raise ResourceError("there is too little free memory on the GPU")
        memory = np.zeros(max(1, nbytes), np.uint8)
        self.held[memory.ctypes.data] = memory
        return int(memory.ctypes.data)

    def free(self, address: int) -> None:
        assert not self.driver.waiting(self.stream), "memory is freed that the stream still works on"
        self.held.pop(address)[:] = 0xA5

    def kernels(self, cache_dir: Path | None, *, quantized: bool) -> NativeKernels | None:  # noqa: ARG002
        return self.native

    def kernels_problem(self) -> str | None:
        return None if self.native else "there is no GPU"

    def load(self, options: ort.SessionOptions, bundle: Bundle, graph: str, *, captures: bool) -> Any:
        assert not options.enable_mem_pattern
        self.loaded.append(graph)
        file = "decode" if graph == "native_decode" else graph
        session = load_graph(bundle.graph_path(file), options, self.row, bundle, bundle.manifest.graphs[file])
        context = int(bundle.model_config["max_position_embeddings"])
        self.sessions[graph] = StreamSession(
            session, self, captures=captures, context=context if file != graph else None
        )
        return self.sessions[graph]

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        self.driver.close()


class StreamSession:
    """The part of an InferenceSession that calls use."""

    def __init__(
        self, session: ort.InferenceSession, device: HostDevice, *, captures: bool, context: int | None
    ) -> None:
        self._session, self._device, self._captures, self._context = session, device, captures, context
        self._threads = threading.local()
        self.graph_ids: list[int] = []  # of all runs that were asked for
        self.replays = 0
        self.released: list[int] = []
        self.before_run: Any = None  # called before each run, as it is asked for

    def io_binding(self) -> ort.IOBinding:
        binding = self._session.io_binding()
        if self._context is not None:  # a native graph has no such input
            binding.bind_cpu_input("total_sequence_length", np.array(self._context, np.int32))
        return binding

    def run_with_iobinding(self, binding: ort.IOBinding, options: ort.RunOptions) -> None:
        graph_id = int(options.get_run_config_entry("gpu_graph_id"))
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        if self.before_run is not None:
            self.before_run()
        self.graph_ids.append(graph_id)
        times = 1
        if graph_id != -1:
            assert self._captures and graph_id > 0
            captured = self._threads.__dict__.setdefault("captured", {})
            runs, first = captured.get(graph_id, (0, binding))
            assert binding is first, "a replay knows the addresses of its capture alone"
            captured[graph_id] = (runs + 1, binding)
            times = 1 if runs >= _RUNS_UNTIL_CAPTURE else 2
            self.replays += runs >= _RUNS_UNTIL_CAPTURE
        plain = ort.RunOptions()
        for _ in range(times):
            self._device.driver.enqueue(self._device.stream, lambda: self._session.run_with_iobinding(binding, plain))

    def release_captured_graph(self, graph_id: int) -> None:
        self.released.append(graph_id)
