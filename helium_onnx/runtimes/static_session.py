"""The session over graphs of fixed shapes, as NPUs take them: a window for keys and values, and padded chunks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from helium_onnx.bundle import Bundle
from helium_onnx.contract import Window
from helium_onnx.errors import ContextOverflowError, UsageError
from helium_onnx.progress import ProgressCallback, ProgressEvent, silent
from helium_onnx.runtimes.checked_files import check_digests
from helium_onnx.runtimes.graph_loading import checked_threads, load_graph, session_options, too_little_memory
from helium_onnx.runtimes.key_value_cache import InPlaceCache, InPlacePast
from helium_onnx.runtimes.packaged import check_compiled, package_options, session_entries
from helium_onnx.runtimes.providers import ExecutionProvider, execution_provider
from helium_onnx.runtimes.session import Past, Phase, closed

_PHASES: tuple[Phase, ...] = ("prefill", "decode")
#: Added to the score of what a token must not see. Half of float16's least number, so that its sum with a score does
#: not become -inf.
_MASKED = float(np.finfo(np.float16).min) / 2


def window_of(bundle: Bundle) -> Window | None:
    """The fixed sizes of the bundle's prefill and decode graphs; None where their shapes are those of the call."""
    record = bundle.manifest.graphs.get("prefill")
    dims = {} if record is None else {spec.name: spec.dims for spec in record.inputs}
    chunk, slots = dims.get("input_ids", ()), dims.get("past_key_values.0.key", ())
    if len(chunk) != 2 or len(slots) != 4 or not isinstance(chunk[1], int) or not isinstance(slots[2], int):
        return None
    return Window(slots[2], chunk[1])


class StaticSession:
    """Runs the static graphs of one bundle (a ``Session`` of the seam). Both are ready on return.

    ``provider`` is the one that the bundle is for, or ``cpu``, which runs the same graphs to compare with.
    ``context_length`` bounds prompt and generated tokens (default and most: the graphs' window). ``threads`` are those
    of the CPU (default: its physical cores).

    ``provider_options`` are the provider's own beside those of its row, as QNN's ``htp_arch``; those of a package for
    the device that it was compiled for (helium_onnx.packaging).

    The window has a slot for each token of the context, in order, so nothing is ever moved or dropped: a text ends
    where it is full. A call runs one row; several rows take turns.

    Raises:
        ProviderError: the provider cannot be loaded, or does not take every node of the graphs; the bundle is a
            package for another place.
        UsageError: ``context_length`` or ``threads`` is out of range.
        And what loading raises.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        provider: str,
        context_length: int | None = None,
        threads: int | None = None,
        cache_dir: Path | None = None,
        progress: ProgressCallback = silent,
        provider_options: Mapping[str, str] | None = None,
    ) -> None:
        window = window_of(bundle)
        assert window is not None, "the bundle's graphs have no fixed shapes"
        self.bundle = bundle
        self.provider: ExecutionProvider = execution_provider(provider)
        check_compiled(bundle, self.provider)
        self._provider_options = {**package_options(bundle), **(provider_options or {})}
        self.window = window
        self.vocab_size = int(bundle.model_config["vocab_size"])
        self.context_length = _checked_context_length(context_length, window)
        self.threads = checked_threads(threads)
        graphs = bundle.manifest.graphs
        self._past_specs = tuple(s for s in graphs["decode"].inputs if s.name.startswith("past_key_values."))
        self._past_names = [spec.name for spec in self._past_specs]
        self._output_names = ["logits", *(name.replace("past_key_values", "present") for name in self._past_names)]
        self._cache = InPlaceCache(self._past_specs, window.context)
        self._inputs = {phase: self._fresh_inputs(phase) for phase in _PHASES}
        check_digests(bundle, cache_dir, progress)
        progress(ProgressEvent("load", ", ".join(bundle.graph_path(phase).name for phase in _PHASES)))
        self._sessions = {phase: self._load(phase) for phase in _PHASES}

    @property
    def exact_split(self) -> int:
        """See ``Session.exact_split``: a chunk always computes the same, where it lies in the text aside."""
        return self.window.prefill_chunk

    def new_past(self, rows: int) -> Past:
        """An empty past of ``rows`` rows; buffers are those of earlier calls where they are large enough."""
        self._check_open()
        try:
            return InPlacePast(self._cache.buffers(rows), np.zeros(rows, np.int64))
        except MemoryError as error:
            raise too_little_memory(self._past_specs, rows, self.window.context, error) from error

    def run(self, phase: Phase, input_ids: NDArray[np.int64], past: Past) -> NDArray[np.float32]:
        """See ``Session.run``. Prefill runs in chunks, the last one padded; decode token by token, row by row.

        Raises:
            ContextOverflowError: past and new tokens are more than the context holds. Nothing has been run then.
        """
        self._check_open()
        assert isinstance(past, InPlacePast)
        rows, new = input_ids.shape
        assert rows == len(past.lengths)
        if (total := int(past.lengths.max()) + new) > self.context_length:
            raise ContextOverflowError(
                "the context is full",
                found=f"{total} tokens of past and new together",
                expected=f"{self.context_length} at most",
                remedy=f"generate less, or export with a longer context than {self.window.context}: --context",
            )
        if phase == "decode":
            steps = [
                [self._call(phase, input_ids[row, i : i + 1], past.row(row)) for i in range(new)] for row in range(rows)
            ]
            return np.concatenate([np.concatenate(row, axis=1) for row in steps])
        assert rows == 1, "prefill takes one row"
        chunk = self.window.prefill_chunk
        # Borders lie at multiples of the chunk in the row, so that a restored prefix leads to the very same calls.
        first = chunk - int(past.lengths[0]) % chunk
        logits = self._call(phase, input_ids[0, :first], past)
        for start in range(first, new, chunk):
            logits = self._call(phase, input_ids[0, start : start + chunk], past)
        return logits

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

    def _call(self, phase: Phase, ids: NDArray[np.int64], past: InPlacePast) -> NDArray[np.float32]:
        """Run one graph on ``ids`` ``[tokens]``, no more than it takes, and keep their keys and values."""
        inputs, context = self._inputs[phase], self.window.context
        length, count = int(past.lengths[0]), len(ids)
        inputs["input_ids"][0, :count] = ids
        inputs["input_ids"][0, count:] = 0  # padding: any id, seen by no token before it
        width = inputs["input_ids"].shape[1]
        inputs["position_ids"][0] = np.minimum(np.arange(length, length + width), context - 1)
        inputs["attention_mask"][..., :length] = 0
        inputs["attention_mask"][..., length:context] = _MASKED
        if phase == "prefill":
            inputs["last_position"][0] = count - 1
        feed = {**inputs, **dict(zip(self._past_names, past.buffers, strict=True))}
        logits, *present = self._sessions[phase].run(self._output_names, feed)
        for buffer, new in zip(past.buffers, present, strict=True):
            buffer[0, :, length : length + count] = new[0, :, :count]
        past.lengths[0] = length + count
        wide: NDArray[np.float32] = logits.astype(np.float32)
        return wide

    def _fresh_inputs(self, phase: Phase) -> dict[str, NDArray[Any]]:
        """All inputs but keys and values. The mask's last columns, of the new tokens, never change: they are causal."""
        specs = {spec.name: spec for spec in self.bundle.manifest.graphs[phase].inputs}
        inputs: dict[str, NDArray[Any]] = {
            name: np.zeros([int(dim) for dim in spec.dims], np.dtype(spec.dtype))
            for name, spec in specs.items()
            if name not in self._past_names
        }
        mask = inputs["attention_mask"]
        width = mask.shape[2]
        mask[..., self.window.context :] = np.where(np.tri(width, dtype=bool), 0.0, _MASKED)
        return inputs

    def _load(self, phase: Phase) -> ort.InferenceSession:
        options = session_options(self.provider, self.threads)
        for key, value in session_entries(self.bundle).items():
            options.add_session_config_entry(key, value)
        record = self.bundle.manifest.graphs[phase]
        return load_graph(
            self.bundle.graph_path(phase), options, self.provider, self.bundle, record, self._provider_options
        )


def _checked_context_length(asked: int | None, window: Window) -> int:
    if asked is None:
        return window.context
    if not 1 < asked <= window.context:
        raise UsageError(
            "the context length is out of range",
            found=asked,
            expected=f"2 to {window.context}, the window of this bundle's graphs",
            remedy="export with a longer context: --context" if asked > window.context else None,
        )
    return asked
