"""From a recipe, a text and a budget to how each matrix is quantized: decided before any weight is written."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from helium_onnx.checkpoint import EMBEDDING, HEAD, SCORE, Checkpoint, expected_tensors
from helium_onnx.config import HeliumConfig
from helium_onnx.errors import UsageError
from helium_onnx.exporter.calibration import Calibration, first_tokens, sensitivity_tokens
from helium_onnx.exporter.quantize import DataFree, Quantizer
from helium_onnx.exporter.quantize.allocation import CANDIDATES, Allocation, Budget, allocate
from helium_onnx.exporter.stored_tensors import DATA_TYPES
from helium_onnx.exporter.weights import ALIGNMENT
from helium_onnx.progress import ProgressCallback
from helium_onnx.recipe import Recipe

#: The three graphs and the manifest, which grow with the layers; with room to spare.
_OTHER_BYTES_A_LAYER = 48 << 10
_OTHER_BYTES = 128 << 10


def needs_calibration(recipe: Recipe) -> bool:
    """Whether the recipe cannot do without calibration text."""
    return recipe.quantization.calibrated or recipe.precision.key_value_cache == "int8"


def check_calibration(recipe: Recipe, calibration: object, goal: Budget | None) -> None:
    """Raise UsageError for a text or a budget that the recipe has no use for."""
    method = recipe.quantization.method
    if goal is not None and method == "none":
        raise UsageError(
            f"the recipe {recipe.name} quantizes nothing, so a budget has nothing to choose",
            remedy="choose a recipe with a method, as cpu-int4",
        )
    if calibration is not None and goal is None and not needs_calibration(recipe) and method != "k-quant":
        raise UsageError(
            f"the recipe {recipe.name} has no use for calibration text",
            found=f'method = "{recipe.quantization.method}", key_value_cache = "{recipe.precision.key_value_cache}"',
            expected='method "gptq" or "k-quant", or an int8 key/value cache',
            remedy="leave the text out, or choose another recipe",
        )


def make_quantizer(source: Checkpoint, recipe: Recipe, text: Calibration | None) -> Quantizer:
    """What turns the checkpoint's matrices into the recipe's, with or without a text."""
    method = recipe.quantization.method
    if text is not None and method in ("gptq", "k-quant"):
        from helium_onnx.exporter.quantize.calibrated import Calibrated

        return Calibrated(source, recipe.quantization, text.windows)
    return DataFree(source, method)


def allocated(
    source: Checkpoint, recipe: Recipe, goal: Budget, text: Calibration, report: ProgressCallback
) -> tuple[Recipe, Allocation]:
    """The recipe with settings for each matrix that meet ``goal``; matrices that it does not quantize stay so."""
    from helium_onnx.exporter.quantize.sensitivity import Sensitivity

    config = source.config
    shapes = expected_tensors(config)
    shapes.setdefault(HEAD, shapes[EMBEDDING])
    names = [name for name in matrices(config) if recipe.quantization.settings_of(name).quantized]
    windows = first_tokens(text.windows, sensitivity_tokens(config))
    ways = {
        name: tuple(dataclasses.replace(way, scales=recipe.quantization.settings_of(name).scales) for way in CANDIDATES)
        for name in names
    }
    costs = Sensitivity(source, windows, report).measure(ways)
    size = int(DATA_TYPES[recipe.precision.compute].itemsize)
    rest = sum(size * math.prod(shape) for name, shape in shapes.items() if name not in names)
    rest += size * config.max_position_embeddings * config.head_dim + 3 * len(shapes) * ALIGNMENT
    rest += _OTHER_BYTES + _OTHER_BYTES_A_LAYER * config.num_hidden_layers
    rest += (source.folder / "tokenizer.json").stat().st_size
    allocation = allocate(shapes, costs, goal, other_bytes=rest)
    settings = dataclasses.replace(
        recipe.quantization, overrides=(*recipe.quantization.overrides, *allocation.overrides())
    )
    return dataclasses.replace(recipe, quantization=settings), allocation


def quantization_record(recipe: Recipe, text: Calibration | None, allocation: Allocation | None) -> dict[str, Any]:
    """What the manifest says of how the weights were chosen."""
    used = None if text is None else {"file": text.file, "sha256": text.sha256, "tokens": text.tokens}
    return {
        "method": recipe.quantization.method,
        "calibration": used,
        "allocation": None if allocation is None else allocation.to_dict(),
    }


def matrices(config: HeliumConfig) -> list[str]:
    """The checkpoint's names of what a recipe may quantize; a tied head has its own, and a classifier is left alone."""
    names = [name for name, shape in expected_tensors(config).items() if len(shape) == 2 and name != SCORE]
    return names if HEAD in names or config.task != "text-generation" else [*names, HEAD]
