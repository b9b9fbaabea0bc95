"""Graphs that an execution provider compiled: one node, EPContext, which names the binary to run.

Source: ONNX Runtime's docs/execution-providers/EP-Context-Design.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from helium_onnx.bundle import Bundle
from helium_onnx.errors import ExportError
from helium_onnx.graph_signature import signature
from helium_onnx.protobuf import fields, texts
from helium_onnx.runtimes.graph_loading import check_specs
from helium_onnx.runtimes.session import Phase

#: The one operator of a compiled graph.
COMPILED = "com.microsoft.EPContext"

# Numbers of fields in onnx.proto3.
_MODEL_GRAPH, _GRAPH_NODE, _NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 7, 1, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_TEXT = 1, 4


@dataclass(frozen=True)
class ContextNode:
    """A node of a compiled graph: its operator with its domain, and the ``binary`` that it names, beside the graph."""

    operator: str
    binary: str | None


def context_nodes(path: Path) -> list[ContextNode]:
    """The nodes of the graph in ``path``. Raises ValueError where that is no graph, OSError where it cannot be read."""
    data = path.read_bytes()
    nodes = []
    for number, _, graph, graph_end in fields(data, 0, len(data)):
        if number != _MODEL_GRAPH:
            continue
        for inner, _, at, end in fields(data, graph, graph_end):
            if inner == _GRAPH_NODE:
                domain, operator = (texts(data, at, end, field) for field in (_NODE_DOMAIN, _NODE_OPERATOR))
                binary = None
                for field, _, begin, stop in fields(data, at, end):
                    if field == _NODE_ATTRIBUTE and texts(data, begin, stop, _ATTRIBUTE_NAME) == ["ep_cache_context"]:
                        binary = "".join(texts(data, begin, stop, _ATTRIBUTE_TEXT))
                nodes.append(ContextNode(".".join(domain + operator), binary))
    return nodes


def check_context_graphs(bundle: Bundle, paths: Mapping[Phase, Path], *, share_weights: bool) -> None:
    """Raise ExportError or IntegrityError unless each of ``paths`` is one compiled node that takes and gives what the
    graph of ``bundle`` does, and names a binary beside it: the same one where weights are shared, one of its own else.

    The compiler wrote them, and nothing here can run a shared one: so what can be read is held against what was asked.
    """
    binaries = []
    for phase, path in paths.items():
        try:
            nodes = context_nodes(path)
        except (OSError, ValueError) as error:
            raise ExportError(f"the compiler wrote no graph {path.name}", found=error) from error
        named = [node.binary or "" for node in nodes]
        if [node.operator for node in nodes] != [COMPILED] or Path(named[0]).name != named[0]:
            raise ExportError(
                f"the compiler did not compile all of {path.name}",
                found=", ".join(node.operator for node in nodes) or "no node",
                expected=f"one node {COMPILED}, which names a file beside it",
            )
        if not (binary := path.parent / named[0]).is_file() or not binary.stat().st_size:
            raise ExportError(f"the compiler wrote no binary for {path.name}", expected=named[0])
        binaries.append(binary)
        record = bundle.manifest.graphs[phase]
        for specs, wanted in zip(signature(path), (record.inputs, record.outputs), strict=True):
            check_specs(specs, wanted, f"the compiled {path.name} takes or gives something else than the bundle's")
    if len(set(binaries)) != (1 if share_weights else len(binaries)):
        raise ExportError(
            "the compiler did not share weights" if share_weights else "the compiler shared weights unasked",
            found=", ".join(sorted({binary.name for binary in binaries})),
        )
