"""The session over WebGPU: a bundle for the CPU on a desktop's GPU, its keys and values kept in the GPU's memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from helium_onnx.bundle import Bundle
from helium_onnx.contract import TensorSpec
from helium_onnx.errors import BundleError, ProviderError
from helium_onnx.progress import ProgressCallback, silent
from helium_onnx.runtimes.graph_loading import is_out_of_memory, too_little_memory
from helium_onnx.runtimes.onnxruntime_session import OnnxRuntimeSession
from helium_onnx.runtimes.providers import CPU, WEBGPU
from helium_onnx.runtimes.session import Past, Phase

#: What the key/value cache may be: the provider's GroupQueryAttention keeps it in the type of the activations, float32.
_CACHE = "float32"
#: What onnxruntime-ep-webgpu says where there is no GPU.
_NO_ADAPTER = "Failed to get a WebGPU adapter"


class WebGpuPast:
    """Rows whose keys and values are buffers on the GPU (a ``Past`` of the seam), one list of buffers a row.

    Each is ``[1, num_key_value_heads, context_length, head_dim]``; a graph takes it as past and gives it as present.
    """

    def __init__(self, buffers: list[list[ort.OrtValue]], lengths: NDArray[np.int64]) -> None:
        self.buffers, self.lengths = buffers, lengths

    def row(self, index: int) -> WebGpuPast:
        return WebGpuPast(self.buffers[index : index + 1], self.lengths[index : index + 1])

    def read_slots(self, start: int, stop: int) -> list[NDArray[Any]]:
        assert len(self.lengths) == 1 and stop <= self.lengths[0]
        if start == stop:  # asked for dtypes and shapes alone: nothing need leave the GPU
            shapes = (buffer.shape() for buffer in self.buffers[0])
            return [np.zeros((shape[1], 0, shape[3]), _CACHE) for shape in shapes]
        return [buffer.numpy()[0, :, start:stop].copy() for buffer in self.buffers[0]]

    def write_slots(self, tensors: list[NDArray[Any]]) -> None:
        assert len(self.lengths) == 1
        start, count = int(self.lengths[0]), tensors[0].shape[1]
        if count:
            for buffer, tensor in zip(self.buffers[0], tensors, strict=True):
                whole = buffer.numpy()  # ONNX Runtime copies whole tensors to a device, no parts of them
                whole[0, :, start : start + count] = tensor
                buffer.update_inplace(whole)
        self.lengths[0] += count


class WebGpuSession(OnnxRuntimeSession):
    """Runs one bundle for the CPU on WebGPU (a ``Session`` of the seam). Both graphs are ready on return.

    ``context_length`` and ``threads`` as for OnnxRuntimeSession; threads are those of the nodes that stay on the CPU.
    Prefill runs in chunks of fewer than 32 tokens (see the row of ``providers.py``), decode row by row.

    Raises:
        ProviderError: the package onnxruntime-ep-webgpu, a GPU or its driver is missing, or the bundle's keys and
            values are of a type that the provider has no kernel for.
        And what loading raises.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        context_length: int | None = None,
        threads: int | None = None,
        progress: ProgressCallback = silent,
    ) -> None:
        check_cache_type(bundle)
        self._rows: list[list[ort.OrtValue]] = []
        try:
            super().__init__(
                bundle,
                provider=WEBGPU.name,
                context_length=context_length,
                threads=threads,
                cache=False,
                progress=progress,
            )
            self.wait()  # before anything runs: one GPU context serves both graphs
        except BundleError as error:
            _, marker, rest = str(error.__cause__).partition(_NO_ADAPTER)
            if not marker:
                raise
            raise ProviderError(
                "WebGPU finds no GPU that it can use",
                found=f"{marker}{rest}".splitlines()[0][:200],
                expected="a GPU with its driver and, on Linux, the Vulkan loader (libvulkan.so.1)",
                remedy=f"install the driver (and Debian's libvulkan1), or run on the CPU: --provider {CPU.name}",
            ) from error

    def use_adapter(self, matrices: Mapping[str, NDArray[np.float32]]) -> None:
        """See ``AdaptableSession.use_adapter``. Raises ProviderError: nobody has tried adapters on a GPU yet."""
        if matrices:
            raise ProviderError(
                "adapters cannot be chosen on WebGPU",
                found=f"an adapter of {len(matrices)} matrices",
                expected="the base model, or an adapter that was merged at export",
                remedy=f"run on the CPU: --provider {CPU.name}",
            )

    def new_past(self, rows: int) -> Past:
        """An empty past of ``rows`` rows; buffers are those of earlier calls."""
        if not self._in_place:
            return super().new_past(rows)
        self._check_open()
        try:
            while len(self._rows) < rows:
                self._rows.append([self._buffer(spec) for spec in self._past_specs])
        except Exception as error:  # ONNX Runtime's exceptions have no base of their own
            if not is_out_of_memory(error):
                raise
            raise too_little_memory(self._past_specs, rows, self.context_length, error) from error
        return WebGpuPast(self._rows[:rows], np.zeros(rows, np.int64))

    def run(self, phase: Phase, input_ids: NDArray[np.int64], past: Past) -> NDArray[np.float32]:
        """See ``Session.run``."""
        if not isinstance(past, WebGpuPast):
            return super().run(phase, input_ids, past)
        assert len(input_ids) == len(past.lengths)
        assert int(past.lengths.max()) + input_ids.shape[1] <= self.context_length, "the past is full"
        chunk = self.provider.prefill_chunk
        results = []
        for index, ids in enumerate(input_ids):
            row, positions, start = past.row(index), [], 0
            while start < len(ids):
                # Borders lie at multiples of the chunk in the row, so that a restored prefix leads to the same calls.
                stop = start + chunk - int(row.lengths[0]) % chunk
                positions.append(self._call(phase, ids[None, start:stop], row))
                start = stop
            results.append(positions[-1] if phase == "prefill" else np.concatenate(positions, axis=1))
        return np.concatenate(results)

    def close(self) -> None:
        """Free the sessions' memory. The session cannot run afterwards."""
        self._rows.clear()
        super().close()

    def _call(self, phase: Phase, input_ids: NDArray[np.int64], row: WebGpuPast) -> NDArray[np.float32]:
        """One run of a graph on ``input_ids`` ``[1, sequence_length]``: its logits."""
        session = self._session(phase)
        total = int(row.lengths[0]) + input_ids.shape[1]
        binding = session.io_binding()
        binding.bind_cpu_input("input_ids", np.ascontiguousarray(input_ids))
        binding.bind_cpu_input("attention_mask", self._ones[:, :total])
        binding.bind_output("logits", "cpu")
        for past, present, buffer in zip(self._past_names, self._present_names, row.buffers[0], strict=True):
            binding.bind_ortvalue_input(past, buffer)
            binding.bind_ortvalue_output(present, buffer)
        session.run_with_iobinding(binding)
        row.lengths[0] = total
        logits: NDArray[np.float32] = binding.get_outputs()[0].numpy()
        return logits

    def _buffer(self, spec: TensorSpec) -> ort.OrtValue:
        """Zeros on the GPU for the keys or values of one row. A session must be there: without one, a machine that has
        no GPU ends the process here.
        """
        device = next(device for device in ort.get_ep_devices() if device.ep_name == WEBGPU.onnxruntime_name)
        return ort.OrtValue.ortvalue_from_shape_and_type(
            [1, int(spec.dims[1]), self.context_length, int(spec.dims[3])],
            np.dtype(spec.dtype),
            memory_info=device.memory_info(ort.OrtDeviceMemoryType.DEFAULT),
        )


def check_cache_type(bundle: Bundle) -> None:
    """Raise ProviderError where the bundle keeps keys and values in a type that WebGPU has no kernel for."""
    record = bundle.manifest.graphs["decode"]
    found = sorted({spec.dtype for spec in record.inputs if spec.name.startswith("past_key_values.")} - {_CACHE})
    if found:
        raise ProviderError(
            f"{bundle.path} cannot run on the execution provider {WEBGPU.name}",
            found=f"keys and values in {', '.join(found)}",
            expected=_CACHE,
            remedy=f'export with --recipe {WEBGPU.recipes[0]}, or with precision.key_value_cache = "{_CACHE}"',
        )
