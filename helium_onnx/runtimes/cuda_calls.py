"""Calls of a CudaSession: a graph bound to addresses on the device, run on the device's stream without waiting."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

from helium_onnx.manifest import GraphRecord
from helium_onnx.runtimes.cuda_device import Device, device_failure
from helium_onnx.runtimes.device_tensors import ELEMENT_TYPES, DeviceTensor

#: ONNX Runtime captures in a thread's third run under a graph's id (cuda_execution_provider.h,
#: min_num_runs_before_cuda_graph_capture_ = 2), some versions within the first: from the fourth on all are replays.
_RUNS_BEFORE_REPLAY = 3
_NOT_CAPTURED = -1  # what gpu_graph_id says of a run that is no CUDA graph
_graph_ids = itertools.count(1)  # never used again, so that no graph over void addresses can be replayed


class Call:
    """One graph over fixed key/value buffers, past and present in one; captured as a CUDA graph or not.

    A captured call replays, so nothing may be placed anew. ONNX Runtime captures in the thread that runs, for that
    thread alone.
    """

    def __init__(
        self,
        device: Device,
        session: ort.InferenceSession,
        record: GraphRecord,
        caches: tuple[DeviceTensor, ...],
        *,
        captured: bool,
    ) -> None:
        self._device, self._session, self._record = device, session, record
        self._binding = session.io_binding()
        self._graph_id = next(_graph_ids) if captured else _NOT_CAPTURED
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(self._graph_id))
        # The stream orders what follows, and events tell the host: ONNX Runtime need not wait for the device.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._ready = threading.local()  # ONNX Runtime drops a thread's captured graphs when the thread ends
        names = [spec.name for spec in record.inputs if spec.name.startswith("past_key_values.")]
        for name, cache in zip(names, caches, strict=True):
            self._put(self._binding.bind_input, name, cache)
            self._put(self._binding.bind_output, name.replace("past_key_values", "present"), cache)

    def place(self, tensors: Mapping[str, DeviceTensor], total_sequence_length: int) -> None:
        """Where all other inputs and outputs are, by name. ``total_sequence_length`` is an input on the host."""
        for spec in self._record.inputs:
            if spec.name == "total_sequence_length":
                self._binding.bind_cpu_input(spec.name, np.array(total_sequence_length, np.int32))
            elif not spec.name.startswith("past_key_values."):
                self._put(self._binding.bind_input, spec.name, tensors[spec.name])
        for spec in self._record.outputs:
            if not spec.name.startswith("present."):
                self._put(self._binding.bind_output, spec.name, tensors[spec.name])

    def run(self) -> None:
        """Put one run on the stream."""
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:
            raise device_failure(error) from error

    def capture(self, set_inputs: Callable[[], None]) -> None:
        """See to it that every further ``run`` in this thread is a replay.

        Until then ONNX Runtime runs the graph more often than it is asked to, and a step overwrites its own input with
        the token that comes next: results are not to be used, and inputs have to be set again.
        """
        if getattr(self._ready, "captured", False):
            return
        for _ in range(_RUNS_BEFORE_REPLAY):
            set_inputs()
            self.run()
        self._ready.captured = True

    def release(self) -> None:
        """Forget the captured graph: its addresses are about to be void."""
        if self._graph_id != _NOT_CAPTURED:
            with contextlib.suppress(Exception):  # it is never replayed; only its memory is at stake
                self._session.release_captured_graph(self._graph_id)

    def _put(self, bind: Callable[..., None], name: str, tensor: DeviceTensor) -> None:
        element: Any = ELEMENT_TYPES[tensor.dtype].onnx
        bind(name, self._device.kind, self._device.index, element, tensor.shape, tensor.address)
