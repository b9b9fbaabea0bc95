"""Traced graphs as CUDA's passes find them: in float16, their weights stored."""

from __future__ import annotations

import dataclasses

import graph_making
import numpy as np
import onnx_ir as ir

from helium_onnx.exporter.key_value_scales import LayerScales
from helium_onnx.exporter.pipelines import weight_passes
from helium_onnx.exporter.weights import WeightPlan
from helium_onnx.recipe import Recipe, load_recipe


def stored(traced: ir.Model, recipe: str | Recipe = "cuda-fp16") -> ir.Model:
    """``traced`` after the weight passes of ``recipe``, in place. Scales of an int8 cache are 1."""
    config = graph_making.config()
    one = np.ones((config.num_key_value_heads, config.head_dim), np.float32)
    scales = [LayerScales(one, one)] * config.num_hidden_layers
    for transformation in weight_passes(WeightPlan(), config, load_recipe(recipe), scales):
        transformation(traced)
    return traced


def coded(recipe: str = "cuda-fp16") -> Recipe:
    """``recipe`` over an int8 cache."""
    made = load_recipe(recipe)
    return dataclasses.replace(made, precision=dataclasses.replace(made.precision, key_value_cache="int8"))


def nodes(model: ir.Model, op_type: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op_type]


def names(values: object) -> list[str | None]:
    """Of values, None for what is absent."""
    return [None if value is None else value.name for value in values]  # type: ignore[attr-defined]
