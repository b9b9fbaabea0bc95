"""The pipeline from a traced model to the graphs of a bundle: a list of passes that one can print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from helium_onnx import contract
from helium_onnx._version import __version__
from helium_onnx.config import HeliumConfig
from helium_onnx.contract import Graph, NativeGraph
from helium_onnx.errors import HeliumOnnxError
from helium_onnx.exporter.key_value_scales import LayerScales
from helium_onnx.exporter.passes.fuse_skip_norm import FuseSkipNorm
from helium_onnx.exporter.passes.last_position import LastPosition
from helium_onnx.exporter.passes.lower_attention_group_query import LowerAttentionGroupQuery
from helium_onnx.exporter.passes.lower_attention_native import LowerAttentionNative
from helium_onnx.exporter.passes.lower_attention_standard import LowerAttentionStandard
from helium_onnx.exporter.passes.lower_attention_universal import LowerAttentionUniversal
from helium_onnx.exporter.passes.lower_linear_native import LowerLinearNative
from helium_onnx.exporter.passes.lower_norm import LowerNormFused, LowerNormStandard
from helium_onnx.exporter.passes.name_nodes import NameNodes
from helium_onnx.exporter.passes.pack_query_key_value import PackQueryKeyValue
from helium_onnx.exporter.passes.rewriting import KERNELS, MICROSOFT
from helium_onnx.exporter.passes.store_key_value_cache import StoreKeyValueCache
from helium_onnx.exporter.passes.store_weights import StoreEmbedding, StoreLinear, StoreRemaining
from helium_onnx.exporter.quantization import matrices
from helium_onnx.exporter.weights import WeightPlan
from helium_onnx.manifest import GraphRecord
from helium_onnx.modeling import DOMAIN
from helium_onnx.recipe import Recipe

#: Runtimes on devices refuse IR version 11 (mobile and browser builds of ONNX Runtime lag behind).
IR_VERSION = 10


def weight_passes(
    plan: WeightPlan, config: HeliumConfig, recipe: Recipe, scales: Sequence[LayerScales] | None = None
) -> list[ir.passes.InPlacePass]:
    """What is done once, before the graphs part: they read the same weights."""
    return [
        PackQueryKeyValue(recipe.quantization),
        StoreEmbedding(plan, recipe.quantization),
        StoreLinear(plan, config, recipe.quantization),
        StoreKeyValueCache(plan, recipe.precision, scales),
        StoreRemaining(plan, config),
    ]


def graph_passes(graph: Graph, recipe: Recipe) -> list[ir.passes.InPlacePass]:
    """The passes that make one graph of the canonical model, in order."""
    passes: list[ir.passes.InPlacePass] = [LastPosition()] if graph == "prefill" else []
    if recipe.graph.operators == "standard":
        passes += [LowerAttentionStandard(), LowerNormStandard()]
    else:
        passes += [
            LowerAttentionUniversal() if graph == "model" else LowerAttentionGroupQuery(),
            LowerNormFused(),
            FuseSkipNorm(),
        ]
    return [*passes, NameNodes()]


def native_passes(graph: NativeGraph) -> list[ir.passes.InPlacePass]:
    """The passes that make one native graph of the canonical model, in order."""
    return [
        LowerAttentionNative(),
        LowerNormFused(),
        FuseSkipNorm(),
        LowerLinearNative(last_position=graph == "native_prefill"),
        NameNodes(),
    ]


def has_native_graphs(config: HeliumConfig, recipe: Recipe) -> bool:
    """Whether our kernels know all that the recipe asks for: 4 or 8 bits throughout, and a floating-point cache."""
    quantization, head_dim = recipe.quantization, config.head_dim
    return (
        recipe.graph.operators == "onnxruntime"
        and recipe.precision.key_value_cache in ("float32", "float16")
        and quantization.accuracy_level == 4
        and head_dim % 16 == 0
        and head_dim <= 1024
        and all(
            (settings := quantization.settings_of(name)).bits in (4, 8) and settings.block_size <= 256
            for name in matrices(config)
        )
    )


def run_passes(model: ir.Model, passes: list[ir.passes.InPlacePass], step: str) -> None:
    """Run ``passes`` in place; an error names the pass and the graph it failed in."""
    for transformation in passes:
        try:
            transformation(model)
        except HeliumOnnxError:
            raise
        except Exception as error:
            raise RuntimeError(f"pass {type(transformation).__name__} failed on {step}: {error}") from error


def build_graphs(
    traced: ir.Model,
    plan: WeightPlan,
    config: HeliumConfig,
    recipe: Recipe,
    scales: Sequence[LayerScales] | None = None,
) -> dict[Graph | NativeGraph, ir.Model]:
    """The graphs of the contract from one trace; ``plan`` then knows every tensor they need.

    ``scales`` are those of an int8 key/value cache, layer by layer.
    """
    run_passes(traced, weight_passes(plan, config, recipe, scales), "the traced graph")
    built: dict[Graph | NativeGraph, ir.Model] = {}
    for graph in contract.GRAPHS:
        built[graph] = model = traced.clone()
        run_passes(model, graph_passes(graph, recipe), f"{graph}.onnx")
    for native in contract.NATIVE_GRAPHS if has_native_graphs(config, recipe) else ():
        built[native] = model = traced.clone()
        run_passes(model, native_passes(native), contract.NATIVE_GRAPH_FILES[native])
    for name, model in built.items():
        _finish(model, name, config, recipe)
    return built


def _finish(model: ir.Model, graph: Graph | NativeGraph, config: HeliumConfig, recipe: Recipe) -> None:
    """Set versions and give inputs and outputs the contract's order and dimensions."""
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "helium-onnx", __version__
    model.graph.name = f"helium.{graph}"
    if recipe.graph.operators == "onnxruntime":
        model.graph.opset_imports[MICROSOFT] = 1
    if graph in contract.NATIVE_GRAPHS:
        model.graph.opset_imports[KERNELS] = 1
    model.graph.opset_imports.pop(DOMAIN, None)  # of the nodes that the passes have lowered: no runtime knows it
    precision = {"compute": recipe.precision.compute, "cache": recipe.precision.key_value_cache}
    for values, direction in ((model.graph.inputs, "input"), (model.graph.outputs, "output")):
        by_name = {value.name: value for value in values}
        specs = contract.tensors(graph, "input" if direction == "input" else "output", config, **precision)
        assert set(by_name) == {spec.name for spec in specs}, f"{graph}.onnx: {direction}s are not the contract's"
        values.clear()
        for spec in specs:
            by_name[spec.name].shape = ir.Shape(spec.dims)
            values.append(by_name[spec.name])
    for name, value in list(model.graph.initializers.items()):
        if not value.uses():
            del model.graph.initializers[name]


def save_graph(model: ir.Model, path: Path) -> None:
    """Write one graph file; weights stay where the plan put them."""
    path.write_bytes(ir.serde.serialize_model(model).SerializeToString(deterministic=True))


def graph_record(model: ir.Model, graph: Graph | NativeGraph, config: HeliumConfig, recipe: Recipe) -> GraphRecord:
    """The manifest's description of one graph."""
    precision = {"compute": recipe.precision.compute, "cache": recipe.precision.key_value_cache}
    operators = Counter(".".join(filter(None, (node.domain, node.op_type))) for node in model.graph)
    return GraphRecord(
        file=contract.graph_file(graph),
        inputs=contract.tensors(graph, "input", config, **precision),
        outputs=contract.tensors(graph, "output", config, **precision),
        operators=dict(sorted(operators.items())),
    )
