"""The graphs of a bundle: made from one traced model by the passes of pipelines.py, finished, described and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from helium_onnx import contract
from helium_onnx._version import __version__
from helium_onnx.config import HeliumConfig
from helium_onnx.contract import Direction, Graph, NativeGraph, TensorSpec
from helium_onnx.errors import HeliumOnnxError
from helium_onnx.exporter.key_value_scales import LayerScales
from helium_onnx.exporter.passes.rewriting import KERNELS, MICROSOFT
from helium_onnx.exporter.pipelines import graph_passes, has_native_graphs, weight_passes
from helium_onnx.exporter.weights import WeightPlan
from helium_onnx.manifest import GraphRecord
from helium_onnx.modeling import DOMAIN
from helium_onnx.recipe import Recipe

__all__ = ["IR_VERSION", "build_graphs", "graph_record", "has_native_graphs", "run_passes", "save_graph"]

#: By operator set. Runtimes on devices refuse IR version 11 (mobile and browser builds of ONNX Runtime lag behind);
#: those that know set 23, which came with it, know it too.
IR_VERSIONS = {18: 10, 23: 11}
IR_VERSION = IR_VERSIONS[18]


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
    *,
    adaptable: bool = False,
) -> dict[Graph | NativeGraph, ir.Model]:
    """The graphs of the contract from one trace; ``plan`` then knows every tensor they need.

    ``scales`` are those of an int8 key/value cache, layer by layer. ``adaptable``: the graphs take LoRA adapters.
    """
    run_passes(traced, weight_passes(plan, config, recipe, scales), "the traced graph")
    built: dict[Graph | NativeGraph, ir.Model] = {}
    for name, passes in graph_passes(config, recipe, adaptable=adaptable).items():
        built[name] = model = traced.clone()
        run_passes(model, passes, contract.graph_file(name))
    for name, model in built.items():
        _finish(model, name, config, recipe)
    return built


def _finish(model: ir.Model, graph: Graph | NativeGraph, config: HeliumConfig, recipe: Recipe) -> None:
    """Set versions and give inputs and outputs the contract's order and dimensions."""
    model.ir_version = IR_VERSIONS[model.graph.opset_imports[""]]
    model.producer_name, model.producer_version = "helium-onnx", __version__
    model.graph.name = f"helium.{graph}"
    domains = {node.domain for node in model.graph}
    model.graph.opset_imports.update({domain: 1 for domain in (MICROSOFT, KERNELS) if domain in domains})
    model.graph.opset_imports.pop(DOMAIN, None)  # of the nodes that the passes have lowered: no runtime knows it
    directions: tuple[Direction, Direction] = ("input", "output")
    for values, direction in zip((model.graph.inputs, model.graph.outputs), directions, strict=True):
        optional = [value for value in values if value.is_initializer()]
        by_name = {value.name: value for value in values if not value.is_initializer()}
        specs = _specs(graph, direction, config, recipe)
        assert set(by_name) == {spec.name for spec in specs}, f"{graph}.onnx: {direction}s are not the contract's"
        values.clear()
        for spec in specs:
            by_name[spec.name].shape = ir.Shape(spec.dims)
            values.append(by_name[spec.name])
        values.extend(optional)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses():
            del model.graph.initializers[name]


def _specs(
    graph: Graph | NativeGraph, direction: Direction, config: HeliumConfig, recipe: Recipe
) -> tuple[TensorSpec, ...]:
    """The contract's inputs or outputs of a graph in the recipe's precision."""
    return contract.tensors(
        graph,
        direction,
        config,
        compute=recipe.precision.compute,
        cache=recipe.precision.key_value_cache,
        execution_provider=recipe.execution_provider,
        window=recipe.graph.window(config.max_position_embeddings),
    )


def save_graph(model: ir.Model, path: Path) -> None:
    """Write one graph file; weights stay where the plan put them."""
    path.write_bytes(ir.serde.serialize_model(model).SerializeToString(deterministic=True))


def graph_record(model: ir.Model, graph: Graph | NativeGraph, config: HeliumConfig, recipe: Recipe) -> GraphRecord:
    """The manifest's description of one graph."""
    operators = Counter(".".join(filter(None, (node.domain, node.op_type))) for node in model.graph)
    return GraphRecord(
        file=contract.graph_file(graph),
        inputs=_specs(graph, "input", config, recipe),
        outputs=_specs(graph, "output", config, recipe),
        operators=dict(sorted(operators.items())),
    )
