"""Bundles whose graphs have fixed shapes, small enough for an emulator."""

from __future__ import annotations

import dataclasses

from helium_onnx.recipe import Method, Recipe, load_recipe


def small(name: str, context: int, prefill_chunk: int, *, method: Method | None = None) -> Recipe:
    """The shipped recipe ``name`` with another window and, in a second instead of a minute, another ``method``."""
    recipe = load_recipe(name)
    quantization = recipe.quantization
    if method is not None:
        quantization = dataclasses.replace(quantization, method=method)
    graph = dataclasses.replace(recipe.graph, context=context, prefill_chunk=prefill_chunk)
    return dataclasses.replace(recipe, graph=graph, quantization=quantization)
