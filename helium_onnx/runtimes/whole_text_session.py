"""The session of tasks without generation: whole texts in, hidden states or logits out, one graph and no past."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from helium_onnx import kernels
from helium_onnx.bundle import Bundle
from helium_onnx.errors import GenerationError, ProviderError, ResourceError
from helium_onnx.progress import ProgressCallback, ProgressEvent, silent
from helium_onnx.runtimes.checked_files import check_digests
from helium_onnx.runtimes.graph_loading import (
    checked_context_length,
    checked_threads,
    is_out_of_memory,
    load_graph,
    session_options,
)
from helium_onnx.runtimes.opening import KernelChoice, checked_choice, cuda_device, native_kernels_lack
from helium_onnx.runtimes.providers import AUTO, CPU, CUDA, ExecutionProvider, bundle_provider
from helium_onnx.runtimes.session import closed

#: The CUDA provider leaves nodes that compute shapes to the CPU; a graph that is captured may have none, this one may.
_CUDA = dataclasses.replace(CUDA, config={})


class WholeTextSession:
    """Runs the one graph of a bundle (a ``WholeTexts`` of the seam), over our own kernels where there are some.

    Arguments are those of ``helium_onnx.load``. Raises what opening a session for generation raises.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        provider: str = AUTO,
        context_length: int | None = None,
        threads: int | None = None,
        choice: KernelChoice = "auto",
        spin: bool = True,
        cache_dir: Path | None = None,
        progress: ProgressCallback = silent,
    ) -> None:
        choice = checked_choice(choice)
        row = bundle_provider(bundle, provider)
        if row not in (CPU, CUDA):
            raise ProviderError(
                f"{bundle.path} cannot run on the execution provider {row.name}",
                found=f"the task {bundle.task}",
                expected="text-generation there",
                remedy="leave --provider at auto",
            )
        self.batch_tokens = row.batch_tokens
        config = bundle.model_config
        self.vocab_size = int(config["vocab_size"])
        self.context_length = checked_context_length(context_length, int(config["max_position_embeddings"]))
        threads = checked_threads(threads)
        check_digests(bundle, cache_dir, progress)
        native = "native_model" in bundle.manifest.graphs and row is CPU and kernels.library() is not None
        if choice == "native" and not native:
            raise native_kernels_lack(bundle, ("native_model",))
        self.native = native and (choice == "native" or (choice == "auto" and kernels.vectorized()))
        graph = "native_model" if self.native else "model"
        record = bundle.manifest.graphs[graph]
        progress(ProgressEvent("load", Path(record.file).name))
        # Asked before ONNX Runtime is, which would only say that the provider did not start.
        self._device = cuda_device(bundle) if row is CUDA else None
        self._takes_mask = any(spec.name == "attention_mask" for spec in record.inputs)
        self._session: ort.InferenceSession | None = load_graph(
            bundle.graph_path(graph), self._options(row, threads, spin), _CUDA if row is CUDA else row, bundle, record
        )

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """See ``WholeTexts.run``.

        Raises:
            GenerationError: the model has been closed.
            ResourceError: the batch's activations find no memory.
        """
        if self._session is None:
            raise closed()
        feed = {"input_ids": input_ids} | ({"attention_mask": attention_mask} if self._takes_mask else {})
        try:
            output: NDArray[np.float32] = self._session.run(None, feed)[0]
        except Exception as error:  # ONNX Runtime's exceptions have no base of their own
            rows, tokens = input_ids.shape
            if is_out_of_memory(error):
                raise ResourceError(
                    f"too little memory for {rows} texts of {tokens} tokens",
                    found=str(error).splitlines()[0][:200],
                    remedy="put fewer tokens into a batch (batch_tokens), or close other programs",
                ) from error
            raise GenerationError(
                f"ONNX Runtime {ort.__version__} cannot run {rows} texts of {tokens} tokens",
                found=str(error).splitlines()[0][:300],
                remedy="`helium-onnx verify` tells whether the bundle is whole",
            ) from error
        return output

    def close(self) -> None:
        """Free the session's memory. The session cannot run afterwards."""
        self._session = None
        if self._device is not None:
            self._device.close()
            self._device = None

    def _options(self, row: ExecutionProvider, threads: int, spin: bool) -> ort.SessionOptions:
        options = session_options(_CUDA if row is CUDA else row, threads)
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
        if self.native:
            options.register_custom_ops_library(str(kernels.LIBRARY))
        if row is CPU:  # matrices in float32, and all where the graph is not native
            options.add_session_config_entry("session.prepack.enable_parallel", "1")
        return options
