"""Ask ONNX Runtime on this machine which provider takes each node of a graph."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import onnxruntime as ort

from helium_onnx import kernels
from helium_onnx.errors import ProviderError
from helium_onnx.installed import version
from helium_onnx.runtimes.cuda_probe import INSTALL
from helium_onnx.runtimes.graph_loading import session_options
from helium_onnx.runtimes.plugins import add_plugin, own_stdout
from helium_onnx.runtimes.providers import ExecutionProvider, default_threads


class AssignedNode(NamedTuple):
    """A node of the graph that ONNX Runtime made of the file's. ``operator`` has its domain, as in manifests."""

    name: str
    operator: str
    provider: str


class Assignment(NamedTuple):
    """``compiled``: as many pieces did the provider compile; None where it runs node by node."""

    nodes: tuple[AssignedNode, ...]
    compiled: int | None


def assign(path: Path, row: ExecutionProvider, *, native: bool = False) -> Assignment:
    """Load the graph in ``path`` on the provider of ``row``, with the CPU behind it, and see who takes what.

    ``native``: the graph has operators of helium_onnx/kernels.

    Raises:
        ProviderError: the provider cannot be loaded on this machine; or it, or ONNX Runtime, does not take the graph.
    """
    recording = {"session.record_ep_graph_assignment_info": "1"}
    options = session_options(dataclasses.replace(row, config=recording), default_threads())
    if native:
        options.register_custom_ops_library(str(kernels.LIBRARY))
    asked: list[tuple[str, dict[str, str]]] | None = None
    if row.plugin is not None:
        add_plugin(options, row, {})
    elif row.onnxruntime_name in ort.get_available_providers():
        asked = [(row.onnxruntime_name, dict(row.options))]
    else:  # CUDA's alone is in some builds of ONNX Runtime, and not in others
        raise ProviderError(
            f"the execution provider {row.name} cannot be loaded",
            found=f"onnxruntime {ort.__version__} without {row.onnxruntime_name}",
            remedy=row.absent or INSTALL,
        )
    try:
        with own_stdout(row):
            session = ort.InferenceSession(path, options, providers=asked, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions have no base of their own
        text = " ".join(str(error).split()) or type(error).__name__
        raise ProviderError(f"ONNX Runtime cannot load {path.name} on {row.name}", found=text[:300]) from error
    if session.get_providers()[0] != row.onnxruntime_name:
        raise ProviderError(f"ONNX Runtime did not start {row.onnxruntime_name}")
    return read(session.get_provider_graph_assignment_info(), row.onnxruntime_name)


def read(parts: object, onnxruntime_name: str) -> Assignment:
    """What ``get_provider_graph_assignment_info`` gave: pieces with ``ep_name`` and ``get_nodes()``."""
    nodes: list[AssignedNode] = []
    pieces, largest = 0, 0
    for part in parts:  # type: ignore[attr-defined]
        found = part.get_nodes()
        if part.ep_name == onnxruntime_name:
            pieces, largest = pieces + 1, max(largest, len(found))
        for node in found:
            domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}."
            nodes.append(AssignedNode(node.name, f"{domain}{node.op_type}", part.ep_name))
    # A provider with kernels reports each node as a piece of its own, one that compiles what it compiled.
    return Assignment(tuple(nodes), pieces if largest > 1 else None)


def versions(row: ExecutionProvider) -> str:
    """Whom ``assign`` asks: ``ONNX Runtime 1.31.1 and onnxruntime-qnn 2.7.0, on this machine``."""
    names = [f"ONNX Runtime {ort.__version__}"]
    if row.package is not None:
        package = row.package.partition("==")[0]
        names.append(" ".join(filter(None, (package, version(package)))))
    return f"{' and '.join(names)}, on this machine"
