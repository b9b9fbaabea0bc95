"""Name nodes and values after the modules they come from, so that profiles and errors can be read."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from helium_onnx.exporter.passes.rewriting import SCOPES


class NameNodes(ir.passes.InPlacePass):
    """Pattern: every node. Replacement: the same, named ``model.layers.0.mlp.up_proj.MatMulNBits``, outputs likewise.

    What converts a stored tensor is named after it, so that in every graph its output has the same name.

    Names depend on the graph alone, so the same input gives the same file. Inputs, outputs and initializers keep
    theirs; metadata and comments of the exporter, which hold paths of the machine, are dropped.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        seen: Counter[str] = Counter()
        before = _names(model)
        for node in model.graph:
            converted = node.inputs[0] if node.op_type == "Cast" else None
            place = converted.name if converted is not None and converted.is_initializer() else _module(node)
            base = ".".join(filter(None, (place, node.op_type)))
            seen[base] += 1
            node.name = base if seen[base] == 1 else f"{base}_{seen[base] - 1}"
            for index, output in enumerate(node.outputs):
                if output.is_graph_output() or output.name == "":
                    continue
                output.name = f"{node.name}.{index}" if len(node.outputs) > 1 else f"{node.name}.output"
        cleared = ClearMetadataAndDocStringPass()(model).modified
        for value in _values(model):  # of which that pass knows nothing
            cleared = cleared or bool(value.metadata_props)
            value.metadata_props.clear()
        return ir.passes.PassResult(model, modified=cleared or _names(model) != before)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph:
        yield from node.outputs


def _names(model: ir.Model) -> list[str | None]:
    return [name for node in model.graph for name in (node.name, *(output.name for output in node.outputs))]


def _module(node: ir.Node) -> str:
    """The deepest module scope of a traced node: ``model.layers.0.mlp``."""
    scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    modules = scopes[:-1] if scopes else []  # the last entry is the traced call itself
    return modules[-1] if modules else ""
