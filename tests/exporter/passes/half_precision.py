"""Traced graphs as CUDA's passes find them: in float16, their weights stored."""

from __future__ import annotations

import graph_making
import onnx_ir as ir

from helium_onnx.exporter.pipelines import weight_passes
from helium_onnx.exporter.weights import WeightPlan
from helium_onnx.recipe import Recipe, load_recipe


def stored(traced: ir.Model, recipe: str | Recipe = "cuda-fp16") -> ir.Model:
    """``traced`` after the weight passes of ``recipe``, in place."""
    for transformation in weight_passes(WeightPlan(), graph_making.config(), load_recipe(recipe)):
        transformation(traced)
    return traced


def nodes(model: ir.Model, op_type: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op_type]


def names(values: object) -> list[str | None]:
    """Of values, None for what is absent."""
    return [None if value is None else value.name for value in values]  # type: ignore[attr-defined]
