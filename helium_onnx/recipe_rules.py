"""What single keys of a recipe cannot say: combinations that mean nothing, or that no kernel runs.

What each execution provider takes is a row of TARGETS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helium_onnx.errors import RecipeError

if TYPE_CHECKING:
    from helium_onnx.recipe import MatrixSettings, Recipe

_KINDS = ("linear", "head", "embedding")
_KIND_OF = {"model.embed_tokens": "embedding", "lm_head": "head"}


@dataclass(frozen=True)
class Target:
    """What the kernels of one provider take. ``caches`` and ``scales`` are by the type of ``precision.compute``.

    ``quantizes`` are the kinds of matrices that may be quantized. ``fixed_shapes``: graphs need the sizes of
    ``graph.context`` and ``graph.prefill_chunk``, which other providers' have no use for.
    """

    operators: tuple[str, ...]
    caches: Mapping[str, tuple[str, ...]]
    scales: Mapping[str, tuple[str, ...]]
    bits: tuple[int, ...]
    accuracy_levels: tuple[int, ...]
    quantizes: tuple[str, ...] = _KINDS
    fixed_shapes: bool = False


TARGETS: dict[str, Target] = {
    # bfloat16: ONNX Runtime's CPU provider has no kernel for it.
    "cpu": Target(
        operators=("onnxruntime", "standard"),
        caches={"float32": ("float32", "float16", "int8")},
        scales={"float32": ("float32", "float16")},
        bits=(2, 4, 8),
        accuracy_levels=(0, 1, 4),
    ),
    # GroupQueryAttention knows no float32 there: it keeps keys and values in the type of the activations or in int8.
    # MatMulNBits wants its scales in that type, knows 4 and 8 bits alone, and has one way to compute. Source: ONNX
    # Runtime 1.31.1, docs/OperatorKernels.md and contrib_ops/cuda/quantization/matmul_nbits.cc.
    "cuda": Target(
        operators=("onnxruntime",),
        caches={"float16": ("float16", "int8"), "bfloat16": ("bfloat16", "int8")},
        scales={"float16": ("float16",), "bfloat16": ("bfloat16",)},
        bits=(4, 8),
        accuracy_levels=(0,),
    ),
    # Of onnxruntime-qnn 2.7.0 for the HTP: no node of a graph whose shapes are free, no GroupQueryAttention, nothing
    # in float32, no GatherBlockQuantized; RMSNormalization, RotaryEmbedding, Attention and MatMulNBits of 4 bits.
    "qnn": Target(
        operators=("opset-23",),
        caches={"float16": ("float16",)},
        scales={"float16": ("float16",)},
        bits=(4,),
        accuracy_levels=(0,),
        quantizes=("linear", "head"),
        fixed_shapes=True,
    ),
    # Of ONNX Runtime 1.31.1's CoreML provider: plain operators of set 18, no node of a graph whose shapes are free, no
    # weights in whole numbers.
    "coreml": Target(
        operators=("standard",),
        caches={"float16": ("float16",)},
        scales={"float16": ("float16",)},
        bits=(),
        accuracy_levels=(0, 1, 4),  # of MatMulNBits, which no graph has
        quantizes=(),
        fixed_shapes=True,
    ),
}


def check(recipe: Recipe, source: str) -> None:
    """Raise RecipeError, which names ``source``, for what ``recipe`` combines wrongly."""
    q, target = recipe.quantization, TARGETS[recipe.execution_provider]
    if q.calibration_tokens < 0:
        raise RecipeError(
            f"{source}: 'quantization.calibration_tokens' is out of range",
            found=q.calibration_tokens,
            expected="0 (the model's size decides), or a number of tokens",
        )
    _check_precision(recipe, target, source)
    _check_shapes(recipe, target, source)
    kinds = [(f"quantization.{kind}", settings) for kind in _KINDS if (settings := getattr(q, kind)).quantized]
    overrides = [(f"quantization.overrides[{i}]", o) for i, o in enumerate(q.overrides)]
    quantized = [where for where, _ in kinds] + [where for where, o in overrides if o.bits not in (None, 32)]
    if quantized and q.method == "none":
        raise RecipeError(
            f"{source}: [{quantized[0]}] has no method",
            remedy='set [quantization] method = "round-to-nearest"',
        )
    if quantized and target.quantizes and recipe.graph.operators == "standard":
        raise RecipeError(
            f"{source}: quantized matrices need ONNX Runtime's operators (MatMulNBits, GatherBlockQuantized)",
            found='graph.operators = "standard"',
            remedy='set graph.operators = "onnxruntime", or remove [quantization]',
        )
    if quantized and q.accuracy_level not in target.accuracy_levels:
        raise _not_taken(recipe, source, "quantization.accuracy_level", q.accuracy_level, target.accuracy_levels)
    for where, settings in kinds:
        _check_kind(recipe, source, where, where.rpartition(".")[2])
        _check_settings(recipe, source, where, settings)
    for where, override in overrides:
        if override.bits not in (None, 32, *target.bits):
            raise _not_taken(recipe, source, f"{where}.bits", override.bits, target.bits or (32,))
        scales = target.scales[recipe.precision.compute]
        if override.scales not in (None, *scales):
            raise _not_taken(recipe, source, f"{where}.scales", override.scales, scales)


def check_matrices(recipe: Recipe, names: Sequence[str]) -> None:
    """Raise RecipeError for a matrix of ``names`` that kinds and overrides together store in a way that is not taken.

    An override may quantize a kind of matrix whose ``scales`` its table leaves at a type that only another provider
    takes: that shows where the two meet.
    """
    for name in names:
        if (settings := recipe.quantization.settings_of(name)).quantized:
            source = f"recipe {recipe.name}"
            _check_kind(recipe, source, name, _KIND_OF.get(name.removesuffix(".weight"), "linear"))
            _check_settings(recipe, source, name, settings)


def _check_precision(recipe: Recipe, target: Target, source: str) -> None:
    provider, compute, cache = recipe.execution_provider, recipe.precision.compute, recipe.precision.key_value_cache
    if compute not in target.caches:
        computing = [name for name, other in TARGETS.items() if compute in other.caches]
        raise RecipeError(
            f"{source}: the provider {provider} does not compute in {compute}",
            found=f'precision.compute = "{compute}"',
            expected=_one_of(tuple(target.caches)),
            remedy=f'set execution_provider = "{computing[0]}", or another precision.compute',
        )
    if recipe.graph.operators not in target.operators:
        raise _not_taken(recipe, source, "graph.operators", recipe.graph.operators, target.operators)
    if cache not in target.caches[compute]:
        raise _not_taken(recipe, source, "precision.key_value_cache", cache, target.caches[compute])
    if cache != recipe.precision.compute and recipe.graph.operators == "standard":
        raise RecipeError(
            f"{source}: a key/value cache in {cache} needs ONNX Runtime's operator (GroupQueryAttention)",
            found='graph.operators = "standard"',
            remedy='set graph.operators = "onnxruntime", or precision.key_value_cache = "float32"',
        )


def _check_shapes(recipe: Recipe, target: Target, source: str) -> None:
    provider, context, chunk = recipe.execution_provider, recipe.graph.context, recipe.graph.prefill_chunk
    if not target.fixed_shapes:
        for key, value in (("context", context), ("prefill_chunk", chunk)):
            if value:
                raise RecipeError(
                    f"{source}: the graphs for the provider {provider} have no fixed shapes",
                    found=f"graph.{key} = {value}",
                    expected=f"{key} = 0",
                    remedy=f"remove the key, or choose a provider whose graphs have: {', '.join(_fixed())}",
                )
        return
    if context < 2:
        raise RecipeError(
            f"{source}: the graphs for the provider {provider} have fixed shapes, and no context",
            found=f"graph.context = {context}",
            expected="2 or more tokens",
            remedy="set graph.context = 1024, 2048 or 4096",
        )
    if not 1 <= chunk <= context:
        raise RecipeError(
            f"{source}: graph.prefill_chunk is out of range",
            found=f"graph.prefill_chunk = {chunk}",
            expected=f"1 to {context}, the context",
            remedy=f"set graph.prefill_chunk = {min(128, context)}",
        )


def _fixed() -> list[str]:
    return [name for name, target in TARGETS.items() if target.fixed_shapes]


def _check_kind(recipe: Recipe, source: str, where: str, kind: str) -> None:
    """Raise RecipeError where the provider has no kernel for quantized matrices of ``kind``."""
    target = TARGETS[recipe.execution_provider]
    if kind not in target.quantizes:
        raise RecipeError(
            f"{source}: the provider {recipe.execution_provider} takes no quantized {kind}",
            found=f"{where} is quantized",
            expected=f"quantized matrices of {' or '.join(target.quantizes)} alone" if target.quantizes else "none",
            remedy=f"set bits = 32 in [quantization.{kind}]",
        )


def _check_settings(recipe: Recipe, source: str, where: str, settings: MatrixSettings) -> None:
    target = TARGETS[recipe.execution_provider]
    if settings.bits not in target.bits:
        raise _not_taken(recipe, source, f"{where}.bits", settings.bits, target.bits)
    scales = target.scales[recipe.precision.compute]
    if settings.scales not in scales:
        raise _not_taken(recipe, source, f"{where}.scales", settings.scales, scales)


def _not_taken(recipe: Recipe, source: str, where: str, found: object, choices: tuple[object, ...]) -> RecipeError:
    provider, compute = recipe.execution_provider, recipe.precision.compute
    key = where.rpartition(".")[2]
    return RecipeError(
        f"{source}: the provider {provider}, computing in {compute}, does not take this {key}",
        found=f"{where} = {_toml(found)}",
        expected=_one_of(choices),
        remedy=f"set {key} = {_toml(choices[0])}",
    )


def _one_of(choices: tuple[object, ...]) -> str:
    return " or ".join(map(_toml, choices))


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
