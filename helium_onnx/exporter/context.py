"""The context of an export whose graphs have fixed shapes, as the caller asks for it beside the recipe."""

from __future__ import annotations

import dataclasses

from helium_onnx.config import HeliumConfig
from helium_onnx.errors import UsageError
from helium_onnx.recipe import Recipe, list_recipes, load_recipe


def with_context(recipe: Recipe, context_length: int | None) -> Recipe:
    """``recipe`` with ``graph.context`` set to ``context_length``; as it is where that is None.

    Raises:
        UsageError: the recipe's graphs take any context, or ``context_length`` is no multiple of a prefill's tokens.
    """
    if context_length is None:
        return recipe
    chunk = recipe.graph.prefill_chunk
    if not recipe.graph.context:
        fixed = [one.name for one in list_recipes() if one.graph.context]
        raise UsageError(
            f"the graphs of recipe {recipe.name} have no fixed context",
            found=f"a context of {context_length}",
            expected=f"a recipe that fixes one: {', '.join(fixed)}",
            remedy="leave it out; generate --context bounds the memory of keys and values",
        )
    if context_length < chunk or context_length % chunk:
        raise UsageError(
            "the context length is out of range",
            found=context_length,
            expected=f"a multiple of {chunk}, the tokens of one prefill (graph.prefill_chunk)",
            remedy="ask for 1024, 2048 or 4096",
        )
    graph = dataclasses.replace(recipe.graph, context=context_length)
    return load_recipe(dataclasses.replace(recipe, graph=graph))


def check_context(context_length: int | None, recipe: Recipe, config: HeliumConfig) -> None:
    """Raise UsageError where more is asked for than the model has positions. A recipe's own context is cut to these."""
    limit, chunk = config.max_position_embeddings, recipe.graph.prefill_chunk
    if context_length is not None and context_length > limit:
        raise UsageError(
            "the context length is out of range",
            found=context_length,
            expected=f"{limit} at most, the model's max_position_embeddings",
            remedy=f"ask for {limit - limit % chunk}"
            if limit >= chunk
            else "leave it out: the recipe's is cut to that",
        )
