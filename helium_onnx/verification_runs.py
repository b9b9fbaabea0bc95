"""Run one graph of a bundle on the CPU to verify it, and hold it against contract and manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from helium_onnx import contract
from helium_onnx.bundle import Bundle
from helium_onnx.config import HeliumConfig
from helium_onnx.contract import Direction, Graph, NativeGraph
from helium_onnx.errors import BundleError, IntegrityError, ResourceError
from helium_onnx.graph_signature import signature
from helium_onnx.manifest import Manifest
from helium_onnx.recipe import GraphSettings
from helium_onnx.runtimes.graph_loading import AGAIN, check_contract, check_specs, session_options
from helium_onnx.runtimes.providers import default_threads, execution_provider

_DIRECTIONS: tuple[Direction, Direction] = ("input", "output")


def provider_of(manifest: Manifest) -> str:
    """The execution provider that the bundle's graphs are made for."""
    return str(manifest.recipe.get("execution_provider", "cpu"))


def run_graph(
    bundle: Bundle,
    graph: Graph,
    ids: NDArray[np.int64],
    past: list[NDArray[Any]],
    before: int,
    expected: tuple[int, int, int],
) -> tuple[NDArray[np.float32], list[NDArray[Any]]]:
    """Load one graph and run it on ``ids`` int64 ``[1, tokens]`` after ``before`` tokens in ``past``.

    Returns the logits in float32, which have the shape ``expected`` and are finite, and the keys and values.

    Raises:
        BundleError: ONNX Runtime cannot load or run it.
        IntegrityError: it is not what the manifest says, or gives something else.
        ResourceError: there is too little memory.
    """
    record, path = bundle.manifest.graphs[graph], bundle.graph_path(graph)
    session = load_for_check(path, bundle)
    check_contract(session, record, path)
    total = before + ids.shape[1]
    longest = max(total, past[0].shape[2])  # that of the buffers, where past and present are such
    named: dict[str, NDArray[Any]] = {
        "input_ids": ids,
        "attention_mask": np.ones((1, total), np.int64),
        "seqlens_k": np.array([total - 1], np.int32),
        "total_sequence_length": np.array(longest, np.int32),
        **dict(zip([s.name for s in record.inputs if s.name.startswith("past_key_values.")], past, strict=True)),
    }
    names = [spec.name for spec in record.outputs]
    try:
        results = session.run(names, {spec.name: named[spec.name] for spec in record.inputs})
    except Exception as error:  # ONNX Runtime's exceptions have no base of their own
        raise runtime_error("run", error, path) from error
    outputs: dict[str, NDArray[Any]] = dict(zip(names, results, strict=True))
    logits = outputs["logits"].astype(np.float32, copy=False)
    if logits.shape != expected:
        raise IntegrityError(
            f"{path.name} gives logits of another shape", found=logits.shape, expected=expected, remedy=AGAIN
        )
    check_finite(logits, path)
    chosen = outputs.get("next_token_ids")
    if chosen is not None and not np.array_equal(chosen, logits.argmax(-1)):
        raise IntegrityError(
            f"{path.name} chooses another token than its logits", found=chosen, expected=logits.argmax(-1), remedy=AGAIN
        )
    return logits, [outputs[name] for name in names if name.startswith("present.")]


def check_finite(logits: NDArray[np.float32], path: Path) -> None:
    """Raise IntegrityError for logits of the graph in ``path`` that are no numbers."""
    if not np.isfinite(logits).all():
        raise IntegrityError(
            f"{path.name} gives logits that are no numbers",
            found=f"{np.count_nonzero(~np.isfinite(logits))} of {logits.size} are NaN or infinite",
            expected="finite logits",
            remedy="export anew from a checkpoint whose own logits are finite (helium-onnx validate compares them)",
        )


def check_record(manifest: Manifest, graph: Graph | NativeGraph, config: HeliumConfig) -> None:
    """Raise IntegrityError unless the manifest describes the graph as the contract has it for this model, precision
    and provider.
    """
    record = manifest.graphs[graph]
    precision = manifest.recipe.get("precision", {})
    compute, cache = (str(precision.get(key, "float32")) for key in ("compute", "key_value_cache"))
    for direction, specs in zip(_DIRECTIONS, (record.inputs, record.outputs), strict=True):
        wanted = contract.tensors(
            graph,
            direction,
            config,
            compute=compute,
            cache=cache,
            execution_provider=provider_of(manifest),
            window=_window(manifest, config),
        )
        problem = f"the {direction}s that the manifest lists for {record.file} are not those of the contract"
        check_specs(specs, wanted, problem)


def _window(manifest: Manifest, config: HeliumConfig) -> contract.Window | None:
    """The fixed sizes that the manifest's recipe asks for; a bundle from before there were any has no such keys."""
    graph = manifest.recipe.get("graph", {})
    sizes = [graph.get(key, 0) for key in ("context", "prefill_chunk")]
    context, chunk = (size if isinstance(size, int) else 0 for size in sizes)
    return GraphSettings(context=context, prefill_chunk=chunk).window(config.max_position_embeddings)


def check_signature(bundle: Bundle, graph: Graph | NativeGraph) -> None:
    """Raise BundleError or IntegrityError unless the graph's file takes and gives what the manifest says.

    For a graph that is not run here: ``check_contract`` asks a session.
    """
    record, path = bundle.manifest.graphs[graph], bundle.graph_path(graph)
    for direction, have, want in zip(_DIRECTIONS, signature(path), (record.inputs, record.outputs), strict=True):
        check_specs(have, want, f"the {direction}s of {path.name} are not those of the manifest")


def load_for_check(path: Path, bundle: Bundle, options: ort.SessionOptions | None = None) -> ort.InferenceSession:
    """A session on the CPU over one graph, whatever provider the bundle is for."""
    row = execution_provider("cpu")
    options = options or session_options(row, default_threads())
    options.log_severity_level = 4  # what goes wrong is told in the check, not on the terminal beside it
    try:
        return ort.InferenceSession(path, options, providers=[(row.onnxruntime_name, dict(row.options))])
    except MemoryError as error:
        raise ResourceError(
            f"too little memory to load {path.name}",
            expected=f"room for {bundle.total_bytes / 1e9:.2f} GB of weights",
            remedy="close other programs, or verify on a larger machine",
        ) from error
    except Exception as error:  # ONNX Runtime's exceptions have no base of their own
        raise runtime_error("load", error, path) from error


def runtime_error(verb: str, error: Exception, path: Path) -> BundleError:
    """What to raise where ONNX Runtime raised ``error``."""
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) > 400:  # a C++ signature stands between what failed and why
        text = f"{text[:120]} ... {text[-240:]}"
    return BundleError(
        f"ONNX Runtime {ort.__version__} cannot {verb} {path.name}",
        found=text,
        expected="a graph that this version can run",
        remedy="export the bundle anew with this helium-onnx",
    )
