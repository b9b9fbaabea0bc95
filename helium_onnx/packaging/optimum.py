"""The target ``optimum``: what optimum's ORTModel classes load of a bundle, and no other graph.

They look for a file named ``model.onnx`` anywhere in the folder (optimum-onnx 0.1.0, onnxruntime/modeling.py, lines
301-344, ``_infer_file_path``), and for ``model.onnx_data`` beside it, so both stay where the bundle has them.
"""

from __future__ import annotations

from pathlib import Path

from helium_onnx.bundle import Bundle
from helium_onnx.packaging.copying import copy_one_graph, needed_for_one_graph
from helium_onnx.packaging.target import Contents, Options, Target
from helium_onnx.progress import ProgressCallback

#: The class that loads the package, by the bundle's task.
CLASSES = {
    "text-generation": "ORTModelForCausalLM",
    "feature-extraction": "ORTModelForFeatureExtraction",
    "text-classification": "ORTModelForSequenceClassification",
    "token-classification": "ORTModelForTokenClassification",
}
_GRAPH = "model"


def refusal(bundle: Bundle) -> str | None:
    """Bundles of other providers are refused: nothing shows that optimum runs their model.onnx rightly."""
    if bundle.task not in CLASSES or _GRAPH not in bundle.manifest.graphs:
        return f"it is for {bundle.task}, with the graphs {', '.join(bundle.manifest.graphs) or 'none'}"
    made_for = bundle.manifest.recipe.get("execution_provider", "cpu")
    return None if made_for == "cpu" else f"its graphs are for {made_for}"


def check(_bundle: Bundle, _options: Options) -> None:
    """Nothing is needed to copy files."""


def needed_bytes(bundle: Bundle, _options: Options) -> int:
    return needed_for_one_graph(bundle)


def make(bundle: Bundle, folder: Path, _options: Options, progress: ProgressCallback) -> Contents:
    """Copy the graph, its weights and the small files into ``folder``."""
    return copy_one_graph(bundle, _GRAPH, folder, {"class": CLASSES[bundle.task]}, progress)


OPTIMUM = Target(
    name="optimum",
    summary="for optimum's ORTModel classes: one graph, the weights, the tokenizer",
    form="a bundle for CPUs, quantized or not",
    recipes=("cpu-int4", "cpu-fp32"),
    options=(),
    refusal=refusal,
    check=check,
    needed_bytes=needed_bytes,
    make=make,
)
