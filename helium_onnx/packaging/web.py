"""The target ``web``: what @helium-onnx/web loads of a bundle, to be put on a server as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helium_onnx.bundle import Bundle
from helium_onnx.errors import ResourceError
from helium_onnx.packaging.copying import copy_one_graph, needed_for_one_graph, weights_bytes
from helium_onnx.packaging.target import Contents, Options, Target
from helium_onnx.progress import ProgressCallback

#: WebAssembly addresses this much, and no more. Source: runtimes/web/src/engine.ts, which has the same number.
WASM_LIMIT_BYTES = 2**32
#: Of keys and values. Source: runtimes/web/src/wasm-engine.ts.
_CACHE_TYPES = ("float32", "float16")
#: The one graph that the browser runs, for prompt and steps alike.
_GRAPH = "prefill"
_SHORTEST = 2


def refusal(bundle: Bundle) -> str | None:
    """What runtimes/web/src/admission.ts would say, before anything is put on a server."""
    graph = bundle.manifest.graphs.get(_GRAPH)
    if bundle.task != "text-generation" or graph is None:
        return f"it is for {bundle.task}, and has no graph {_GRAPH}"
    made_for = bundle.manifest.recipe.get("execution_provider", "cpu")
    logits = {spec.dtype for spec in graph.outputs if spec.name == "logits"}
    if "attention_mask" not in {spec.name for spec in graph.inputs} or made_for != "cpu":
        return f"its graphs are for {made_for}"
    if logits != {"float32"}:
        return f"it computes in {', '.join(sorted(logits)) or 'nothing known'}"
    caches = {spec.dtype for spec in graph.inputs if spec.name.startswith("past_key_values.")}
    if not caches <= set(_CACHE_TYPES):
        return f"it keeps keys and values in {', '.join(sorted(caches))}"
    return None


def longest_context(bundle: Bundle) -> int:
    """The tokens whose keys and values fit into WebAssembly's memory beside the weights; at most the model's."""
    specs = [spec for spec in bundle.manifest.graphs[_GRAPH].inputs if spec.name.startswith("past_key_values.")]
    token = sum(int(spec.dims[1]) * int(spec.dims[3]) * np.dtype(spec.dtype).itemsize for spec in specs)
    room = WASM_LIMIT_BYTES - 1 - weights_bytes(bundle)
    return min(int(bundle.model_config["max_position_embeddings"]), max(0, room // token))


def check(bundle: Bundle, _options: Options) -> None:
    """Raise ResourceError where the weights leave no room for keys and values."""
    if longest_context(bundle) < _SHORTEST:
        raise ResourceError(
            f"{bundle.path} is too large for a browser",
            found=f"{weights_bytes(bundle) / 1e9:.2f} GB of weights",
            expected=f"less than {WASM_LIMIT_BYTES / 1e9:.2f} GB with keys and values, which WebAssembly can address",
            remedy="take fewer bits a weight: helium-onnx export CHECKPOINT OUT --recipe cpu-int4",
        )


def needed_bytes(bundle: Bundle, _options: Options) -> int:
    return needed_for_one_graph(bundle)


def make(bundle: Bundle, folder: Path, _options: Options, progress: ProgressCallback) -> Contents:
    """Copy the graph, its weights and the small files into ``folder``."""
    return copy_one_graph(bundle, _GRAPH, folder, {"longest_context": longest_context(bundle)}, progress)


WEB = Target(
    name="web",
    summary="for @helium-onnx/web in browsers: one graph, the weights, the tokenizer",
    form="a bundle for CPUs that computes in float32, quantized or not",
    recipes=("cpu-int4", "cpu-fp32"),
    options=(),
    refusal=refusal,
    check=check,
    needed_bytes=needed_bytes,
    make=make,
)
