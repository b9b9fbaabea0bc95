"""Small bundles of the sample to package, and whether the compiler for Snapdragon's NPU is here."""

from __future__ import annotations

import dataclasses
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.recipe import load_recipe
from helium_onnx.runtimes.providers import QNN

SAMPLE = Path(__file__).parents[2] / "samples" / "helium-docs-7m"
#: More than a chunk of tokens, so that a whole one and a padded one are read.
PROMPT = "To insert a table in a text document, choose Insert - Table and then enter the number of rows and columns."


def export(name: str, out: Path) -> Bundle:
    """The sample under a recipe for QNN, with a window of 64 tokens; in int4 by k-quant, which takes a second."""
    recipe = load_recipe(name)
    if recipe.quantization.method != "none":
        recipe = dataclasses.replace(recipe, quantization=dataclasses.replace(recipe.quantization, method="k-quant"))
    graph = dataclasses.replace(recipe.graph, context=64, prefill_chunk=16)
    return helium_onnx.export(SAMPLE, out, recipe=dataclasses.replace(recipe, graph=graph))


def need_compiler() -> None:
    """Skip where onnxruntime-qnn is not installed; with HELIUM_REQUIRE_QNN=1 that is a failure."""
    if find_spec(str(QNN.plugin)) is None:
        missing = pytest.fail if os.environ.get("HELIUM_REQUIRE_QNN") == "1" else pytest.skip
        missing(f"no compiler for the NPU: pip install --no-deps {QNN.package}")
