"""Verify the graphs of a task without generation: rows of different lengths, padded on either side, and alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from helium_onnx import contract, kernels
from helium_onnx.bundle import Bundle
from helium_onnx.config import HeliumConfig
from helium_onnx.contract import Graph, NativeGraph
from helium_onnx.errors import IntegrityError
from helium_onnx.runtimes.graph_loading import AGAIN, check_contract, session_options
from helium_onnx.runtimes.providers import CPU, default_threads
from helium_onnx.verification_runs import check_finite, check_record, load_for_check, runtime_error

_Rows = list[NDArray[np.float32]]


class TextGraphs:
    """The graphs of one bundle, run on the CPU on two rows of ids: a text, and its first half."""

    def __init__(self, bundle: Bundle, config: HeliumConfig, ids: NDArray[np.int64]) -> None:
        """``ids`` int64 ``[1, tokens]``, of at least two tokens."""
        self.bundle, self.config = bundle, config
        text = ids[0].tolist()
        self.rows: list[list[int]] = [text, text[: max(1, len(text) // 2)]]
        self.alone: dict[str, _Rows] = {}

    def run_alone(self, graph: Graph | NativeGraph) -> str:
        """Each row by itself; what was seen. Raises what ``verify_bundle`` reports."""
        session = self._load(graph)
        self.alone[graph] = [self._run(session, graph, [row], "right")[0] for row in self.rows]
        record, shape = self.bundle.manifest.graphs[graph], list(self.alone[graph][0].shape)
        return (
            f"{record.file} loads, takes {len(record.inputs)} inputs and gives {len(record.outputs)} outputs as the "
            f"contract says; its output {shape} is finite"
        )

    def check_padding(self, tolerance: float) -> str:
        """Both rows together, padded on either side, give what each gives alone."""
        if self.config.task == "text-classification" and self.config.pad_token_id is None:
            return "one row at a time: the model has no pad_token_id"
        session, seen = self._load("model"), []
        for side in ("right", "left"):
            together = self._run(session, "model", self.rows, side)
            worst = self._compare(together, self.alone["model"], tolerance, f"padded on the {side}")
            seen.append(f"{side} {worst:.1g}")
        return f"differences of padded rows from rows alone, as parts of the largest value: {', '.join(seen)}"

    def check_native(self, tolerance: float) -> str:
        """The native graph against ``model.onnx``."""
        if "native_model" not in self.bundle.manifest.graphs:
            return "none in this bundle: our kernels do not know its recipe, or the size of its heads"
        check_record(self.bundle.manifest, "native_model", self.config)
        if kernels.library() is None:
            return "there, and as the contract says; not run, since this machine has no native kernels"
        self.run_alone("native_model")
        worst = self._compare(self.alone["native_model"], self.alone["model"], tolerance, "over native kernels")
        return f"differences from model.onnx, as parts of the largest value: {worst:.1g}"

    def _load(self, graph: Graph | NativeGraph) -> ort.InferenceSession:
        check_record(self.bundle.manifest, graph, self.config)
        path = self.bundle.graph_path(graph)
        options = session_options(CPU, default_threads())
        if graph == "native_model":
            options.register_custom_ops_library(str(kernels.LIBRARY))
        session = load_for_check(path, self.bundle, options)
        check_contract(session, self.bundle.manifest.graphs[graph], path)
        return session

    def _run(
        self, session: ort.InferenceSession, graph: Graph | NativeGraph, rows: Sequence[Sequence[int]], side: str
    ) -> _Rows:
        """The output of each row: of its tokens alone, where there is one for each."""
        path, longest = self.bundle.graph_path(graph), max(map(len, rows))
        pad = self.config.pad_token_id or 0
        places = [slice(longest - len(row), None) if side == "left" else slice(0, len(row)) for row in rows]
        feed = {
            "input_ids": np.full((len(rows), longest), pad, np.int64),
            "attention_mask": np.zeros((len(rows), longest), np.int64),
        }
        for i, (row, place) in enumerate(zip(rows, places, strict=True)):
            feed["input_ids"][i, place], feed["attention_mask"][i, place] = row, 1
        names = [spec.name for spec in contract.tensors(graph, "input", self.config)]
        try:
            output: NDArray[np.float32] = session.run(None, {name: feed[name] for name in names})[0]
        except Exception as error:  # ONNX Runtime's exceptions have no base of their own
            raise runtime_error("run", error, path) from error
        (spec,) = contract.tensors(graph, "output", self.config)
        sizes = {"batch_size": len(rows), "sequence_length": longest}
        expected = tuple(sizes[dim] if isinstance(dim, str) else dim for dim in spec.dims)
        if output.shape != expected:
            raise IntegrityError(
                f"{path.name} gives an output of another shape", found=output.shape, expected=expected, remedy=AGAIN
            )
        kept = [row[place] if row.ndim == 2 else row for row, place in zip(output, places, strict=True)]
        for row in kept:
            check_finite(row, path)
        return kept

    def _compare(self, found: _Rows, expected: _Rows, tolerance: float, how: str) -> float:
        """The largest difference, as a part of the largest value; IntegrityError beyond ``tolerance``."""
        scale = max(float(np.abs(row).max()) for row in expected) or 1.0
        worst = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True)) / scale
        if not worst <= tolerance:  # NaN is no agreement
            raise IntegrityError(
                f"{Path(self.bundle.manifest.graphs['model'].file).name} gives something else {how}",
                found=f"a difference of {worst:.2g} of the largest value {scale:.3g}",
                expected=f"at most {tolerance:g} of it",
                remedy="export the bundle anew; if that does not help, report it with this text",
            )
        return worst
