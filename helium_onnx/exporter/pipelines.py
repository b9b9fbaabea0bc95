"""Which passes make the graphs of a bundle: lists that one can print, a row for each provider and graph form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from helium_onnx.checkpoint import expected_tensors
from helium_onnx.config import HeliumConfig
from helium_onnx.contract import Graph, NativeGraph
from helium_onnx.errors import RecipeError
from helium_onnx.exporter.key_value_scales import LayerScales
from helium_onnx.exporter.passes.add_low_rank import AddLowRank
from helium_onnx.exporter.passes.float32_output import Float32Output
from helium_onnx.exporter.passes.forget_shapes import ForgetShapes
from helium_onnx.exporter.passes.fuse_gate_device import FuseGateDevice
from helium_onnx.exporter.passes.fuse_norm_device import FuseNormDevice
from helium_onnx.exporter.passes.fuse_residual_device import FuseResidualDevice
from helium_onnx.exporter.passes.fuse_skip_norm import FuseSkipNorm
from helium_onnx.exporter.passes.last_position import LastPosition
from helium_onnx.exporter.passes.last_position_cuda import LastPositionCuda
from helium_onnx.exporter.passes.last_position_static import LastPositionStatic
from helium_onnx.exporter.passes.lower_attention_cuda import LowerAttentionCuda
from helium_onnx.exporter.passes.lower_attention_device import LowerAttentionDevice
from helium_onnx.exporter.passes.lower_attention_group_query import LowerAttentionGroupQuery
from helium_onnx.exporter.passes.lower_attention_int8 import LowerAttentionInt8
from helium_onnx.exporter.passes.lower_attention_native import LowerAttentionNative
from helium_onnx.exporter.passes.lower_attention_standard import LowerAttentionStandard
from helium_onnx.exporter.passes.lower_attention_static import LowerAttentionStatic
from helium_onnx.exporter.passes.lower_attention_static_standard import LowerAttentionStaticStandard
from helium_onnx.exporter.passes.lower_attention_universal import LowerAttentionUniversal
from helium_onnx.exporter.passes.lower_embedding_device import LowerEmbeddingDevice
from helium_onnx.exporter.passes.lower_gate import LowerGate
from helium_onnx.exporter.passes.lower_last_token import LowerLastToken
from helium_onnx.exporter.passes.lower_linear_device import LowerLinearDevice
from helium_onnx.exporter.passes.lower_linear_native import LowerLinearNative
from helium_onnx.exporter.passes.lower_norm import (
    LowerNormFused,
    LowerNormOpset23,
    LowerNormScaled,
    LowerNormStandard,
)
from helium_onnx.exporter.passes.name_nodes import NameNodes
from helium_onnx.exporter.passes.next_token import NextToken
from helium_onnx.exporter.passes.next_token_device import NextTokenDevice
from helium_onnx.exporter.passes.pack_query_key_value import PackQueryKeyValue
from helium_onnx.exporter.passes.set_compute_type import SetComputeType
from helium_onnx.exporter.passes.set_operator_set import SetOperatorSet
from helium_onnx.exporter.passes.store_key_value_cache import StoreKeyValueCache
from helium_onnx.exporter.passes.store_weights import StoreEmbedding, StoreLinear, StoreRemaining
from helium_onnx.exporter.quantization import matrices
from helium_onnx.exporter.stored_tensors import DATA_TYPES
from helium_onnx.exporter.weights import WeightPlan
from helium_onnx.recipe import Recipe

Passes = list[ir.passes.InPlacePass]


def _float32_weights(
    plan: WeightPlan, config: HeliumConfig, recipe: Recipe, scales: Sequence[LayerScales] | None
) -> Passes:
    return [
        PackQueryKeyValue(recipe.quantization),
        StoreEmbedding(plan, recipe.quantization),
        StoreLinear(plan, config, recipe.quantization),
        StoreKeyValueCache(plan, recipe.precision, scales),
        StoreRemaining(plan, config),
    ]


def _half_precision_weights(
    plan: WeightPlan, config: HeliumConfig, recipe: Recipe, scales: Sequence[LayerScales] | None
) -> Passes:
    return [
        SetComputeType(DATA_TYPES[recipe.precision.compute]),
        PackQueryKeyValue(recipe.quantization, unquantized=True),
        StoreEmbedding(plan, recipe.quantization),
        StoreLinear(plan, config, recipe.quantization),
        StoreKeyValueCache(plan, recipe.precision, scales),  # after SetComputeType: scales stay float32
        StoreRemaining(plan, config),
    ]


def _npu_weights(
    plan: WeightPlan, config: HeliumConfig, recipe: Recipe, _scales: Sequence[LayerScales] | None
) -> Passes:
    return [
        SetComputeType(DATA_TYPES[recipe.precision.compute]),
        StoreEmbedding(plan, recipe.quantization),
        StoreLinear(plan, config, recipe.quantization, transposed=True),
        StoreRemaining(plan, config),
    ]


def _native_attention(config: HeliumConfig) -> bool:
    """Heads of whole sixteens."""
    return config.head_dim % 16 == 0 and config.head_dim <= 1024


def _native_cpu(config: HeliumConfig, recipe: Recipe) -> bool:
    """4 or 8 bits throughout, and a floating-point cache."""
    quantization = recipe.quantization
    return (
        recipe.precision.key_value_cache in ("float32", "float16")
        and quantization.accuracy_level == 4
        and _native_attention(config)
        and all(
            (settings := quantization.settings_of(name)).bits in (4, 8) and settings.block_size <= 256
            for name in matrices(config)
        )
    )


def _native_cpu_whole_texts(config: HeliumConfig, recipe: Recipe) -> Passes | None:
    """Attention by our own kernels, which takes half the time of ONNX Runtime's over whole texts (docs/tasks.md): in
    float32, or in 8 bits where they know the weights too, whose activations are rounded likewise.
    """
    if not _native_attention(config):
        return None
    norms: Passes = [LowerNormFused(), FuseSkipNorm()]
    if _native_cpu(config, recipe):
        return [LowerLastToken(), LowerAttentionInt8(), *norms, LowerLinearNative(last_position=False)]
    return [LowerLastToken(), LowerAttentionNative(half=False), *norms]


def _native_cuda(config: HeliumConfig, recipe: Recipe) -> bool:
    """What kernels/device takes: sizes of heads and of groups that share a key/value head, rows and columns in eights,
    and blocks of at least 32.
    """
    settings = [recipe.quantization.settings_of(name) for name in matrices(config)]
    return (
        config.head_dim in (16, 32, 64, 128)
        and config.num_attention_heads <= 4 * config.num_key_value_heads
        and all(size % 8 == 0 for shape in expected_tensors(config).values() for size in shape)
        and all(kind.block_size >= 32 for kind in settings if kind.quantized)
    )


def _cuda_norms_and_gate() -> Passes:
    return [LowerNormFused(), FuseSkipNorm(), LowerGate(), NextToken()]


@dataclass(frozen=True)
class Pipeline:
    """The passes of one provider and graph form, in order.

    ``weights`` are run once, before the graphs part: they read the same weights. ``graphs`` make each graph of the
    canonical model; ``native`` likewise the native ones, where ``has_native`` says that our kernels know all that the
    recipe asks for. ``whole_texts`` makes the one graph of a task without generation (None: the provider has none), and
    ``native_whole_texts`` its native one, or None. NameNodes ends every list.
    """

    weights: Callable[[WeightPlan, HeliumConfig, Recipe, Sequence[LayerScales] | None], Passes]
    graphs: Mapping[Graph, Callable[[], Passes]]
    native: Mapping[NativeGraph, Callable[[], Passes]] = field(default_factory=dict)
    has_native: Callable[[HeliumConfig, Recipe], bool] = lambda _config, _recipe: False
    whole_texts: Callable[[], Passes] | None = None
    native_whole_texts: Callable[[HeliumConfig, Recipe], Passes | None] = lambda _config, _recipe: None


#: By the recipe's ``execution_provider`` and ``graph.operators``.
PIPELINES: dict[tuple[str, str], Pipeline] = {
    ("cpu", "onnxruntime"): Pipeline(
        _float32_weights,
        {
            "prefill": lambda: [LastPosition(), LowerAttentionGroupQuery(), LowerNormFused(), FuseSkipNorm()],
            "decode": lambda: [LowerAttentionGroupQuery(), LowerNormFused(), FuseSkipNorm()],
            "model": lambda: [LowerAttentionUniversal(), LowerNormFused(), FuseSkipNorm()],
        },
        {
            "native_prefill": lambda: [
                LowerAttentionNative(), LowerNormFused(), FuseSkipNorm(), LowerLinearNative(last_position=True),
            ],
            "native_decode": lambda: [
                LowerAttentionNative(), LowerNormFused(), FuseSkipNorm(), LowerLinearNative(last_position=False),
            ],
        },
        _native_cpu,
        lambda: [LowerLastToken(), LowerAttentionUniversal(), LowerNormFused(), FuseSkipNorm()],
        _native_cpu_whole_texts,
    ),
    ("cpu", "standard"): Pipeline(
        _float32_weights,
        {
            "prefill": lambda: [LastPosition(), LowerAttentionStandard(), LowerNormStandard()],
            "decode": lambda: [LowerAttentionStandard(), LowerNormStandard()],
            "model": lambda: [LowerAttentionStandard(), LowerNormStandard()],
        },
        whole_texts=lambda: [LowerLastToken(), LowerAttentionStandard(), LowerNormStandard()],
    ),
    ("cuda", "onnxruntime"): Pipeline(
        _half_precision_weights,
        {
            "prefill": lambda: [LastPositionCuda(), LowerAttentionCuda(), *_cuda_norms_and_gate()],
            "decode": lambda: [LowerAttentionCuda(), *_cuda_norms_and_gate()],
            "model": lambda: [LowerAttentionUniversal(), LowerNormFused(), FuseSkipNorm(), LowerGate()],
        },
        {
            "native_decode": lambda: [
                LowerEmbeddingDevice(), LowerAttentionDevice(), LowerLinearDevice(), LowerGate(), FuseGateDevice(),
                FuseNormDevice(), FuseResidualDevice(), NextTokenDevice(),
            ],
        },
        _native_cuda,
        lambda: [
            LowerLastToken(), LowerAttentionUniversal(), LowerNormFused(), FuseSkipNorm(), LowerGate(), Float32Output(),
        ],
    ),
    ("qnn", "opset-23"): Pipeline(
        _npu_weights,
        {
            "prefill": lambda: [
                LastPositionStatic(), LowerAttentionStatic(), LowerNormOpset23(), SetOperatorSet(23), ForgetShapes(),
            ],
            "decode": lambda: [LowerAttentionStatic(), LowerNormOpset23(), SetOperatorSet(23), ForgetShapes()],
            "model": lambda: [LowerAttentionUniversal(), LowerNormFused(), FuseSkipNorm()],
        },
    ),
    ("coreml", "standard"): Pipeline(
        _npu_weights,
        {
            "prefill": lambda: [
                LastPositionStatic(), LowerAttentionStaticStandard(), LowerNormScaled(), ForgetShapes(),
            ],
            "decode": lambda: [LowerAttentionStaticStandard(), LowerNormScaled(), ForgetShapes()],
            "model": lambda: [LowerAttentionStandard(), LowerNormScaled()],
        },
    ),
}  # fmt: skip


def pipeline(recipe: Recipe) -> Pipeline:
    """The row of PIPELINES for ``recipe``."""
    return PIPELINES[recipe.execution_provider, recipe.graph.operators]


def check_task(config: HeliumConfig, recipe: Recipe) -> None:
    """Raise RecipeError where the recipe's provider has no graph for a task without generation."""
    if config.task == "text-generation" or pipeline(recipe).whole_texts is not None:
        return
    raise RecipeError(
        f"the recipe {recipe.name} is for text generation",
        found=f"the task {config.task}, whose texts have any length",
        expected=f"text-generation: graphs for {recipe.execution_provider} have fixed shapes, made for its steps",
        remedy="choose a recipe for CPUs (cpu-int8) or for CUDA (cuda-fp16)",
    )


def has_native_graphs(config: HeliumConfig, recipe: Recipe) -> bool:
    """Whether our kernels know all that the recipe asks for in text generation."""
    return pipeline(recipe).has_native(config, recipe)


def weight_passes(
    plan: WeightPlan, config: HeliumConfig, recipe: Recipe, scales: Sequence[LayerScales] | None = None
) -> Passes:
    """What is done once, before the graphs part."""
    return pipeline(recipe).weights(plan, config, recipe, scales)


def graph_passes(config: HeliumConfig, recipe: Recipe, *, adaptable: bool = False) -> dict[Graph | NativeGraph, Passes]:
    """The passes that make each graph of a bundle out of the canonical model, in order.

    ``adaptable``: the graphs take LoRA adapters as inputs.
    """
    row = pipeline(recipe)
    lists: dict[Graph | NativeGraph, Passes]
    if config.task == "text-generation":
        lists = {graph: make() for graph, make in row.graphs.items()}
        if row.has_native(config, recipe):
            lists |= {graph: make() for graph, make in row.native.items()}
    else:
        assert row.whole_texts is not None, "check_task comes first"
        lists = {"model": row.whole_texts()}
        if (passes := row.native_whole_texts(config, recipe)) is not None:
            lists["native_model"] = passes
    adapters: Passes = [AddLowRank(config)] if adaptable else []
    return {graph: [*passes, *adapters, NameNodes()] for graph, passes in lists.items()}
