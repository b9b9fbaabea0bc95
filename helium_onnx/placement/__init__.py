"""Which nodes of a bundle's graphs an execution provider takes, and why it leaves the others.

ONNX Runtime is asked where it can load the provider on this machine (assigned.py), a table of operators elsewhere
(tables.py); what comes out says which of the two it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from helium_onnx import contract, kernels
from helium_onnx.bundle import Bundle
from helium_onnx.errors import ProviderError, UsageError
from helium_onnx.placement.assigned import Assignment, assign, versions
from helium_onnx.placement.graph import Node, nodes
from helium_onnx.placement.partitions import partitions
from helium_onnx.placement.tables import TABLES, OperatorTable
from helium_onnx.runtimes.packaged import unloadable
from helium_onnx.runtimes.providers import CPU, PROVIDERS, bundle_provider

#: All that can be asked for: those that run bundles, and those that have a table alone.
NAMES: tuple[str, ...] = tuple(dict.fromkeys((*PROVIDERS, *TABLES)))
#: What a provider must take some of to be of use: these read all of the weights.
PRODUCTS = ("MatMul", "Gemm", "com.microsoft.MatMulNBits", "com.microsoft.FusedMatMul")
#: How an answer was found.
ONNXRUNTIME, TABLE = "onnxruntime", "table"


def placement(bundle: Bundle, provider: str) -> dict[str, Any]:
    """Where the nodes of the bundle's graphs would run on ``provider``, one of NAMES.

    Returns:
        A dict that can be written as JSON. ``method``: ``onnxruntime`` (its own assignment) or ``table``; ``source``
        says whose; ``not_asked`` why ONNX Runtime was not asked, and ``remedy`` what would change that (else None).
        ``graphs``: per graph ``nodes``, ``taken``, ``share``, ``partitions``, ``operators`` (per operator ``nodes``
        and ``taken``), ``names`` of the nodes that are taken, and ``left`` (``name``, ``operator``, ``provider``,
        ``reason`` of each that is not), and ``problem`` where the graph does not load at all (else None).
        ``skipped``: graphs that are not for this provider, and why. ``problem`` and ``use``: why the provider cannot
        serve the bundle, and the recipes whose bundles it serves (else None and []). ``note``: what to know beside
        the numbers, or None.

    Raises:
        UsageError: there is no such provider.
        BundleError: a graph cannot be read.
    """
    if provider not in NAMES:
        raise UsageError("there is no such provider", found=repr(provider), expected=f"one of {', '.join(NAMES)}")
    row, table = PROVIDERS.get(provider), TABLES.get(provider)
    graphs, skipped = _graphs(bundle, provider)
    read = {name: nodes(bundle.path / bundle.manifest.graphs[name].file) for name in graphs}
    answers: dict[str, Assignment] = {}
    failures: dict[str, ProviderError] = {}
    if row is not None:
        for name in graphs:
            try:
                native = name in contract.NATIVE_GRAPH_FILES
                answers[name] = assign(bundle.path / bundle.manifest.graphs[name].file, row, native=native)
            except ProviderError as error:
                failures[name] = error
                if table is not None:  # one answer for all of the bundle: a mixture would be read as one
                    break
    failure = next(iter(failures.values()), None)
    if table is not None and (row is None or failure is not None):
        found = {name: by_table(read[name], table) for name in graphs}
        method, source = TABLE, table.source
        asked = "ONNX Runtime's package for this machine has no such provider" if failure is None else _text(failure)
    else:
        assert row is not None
        found = {
            name: by_assignment(read[name], answers[name], row.onnxruntime_name, table)
            if name in answers
            else _unloadable(read[name], row.onnxruntime_name, _text(failures[name]))
            for name in graphs
        }
        method, source, asked = ONNXRUNTIME, versions(row), None
    problem, use = _problem(bundle, provider, found)
    return {
        "provider": provider,
        "execution_provider": row.onnxruntime_name
        if row is not None
        else table.onnxruntime_name
        if table
        else provider,
        "method": method,
        "source": source,
        "not_asked": asked,
        "remedy": failure.remedy if method == TABLE and failure is not None else None,
        "graphs": {name: {"file": bundle.manifest.graphs[name].file, **found[name]} for name in graphs},
        "skipped": skipped,
        "problem": problem,
        "use": use,
        "note": table.note if table is not None and (method == TABLE or row is None) else None,
    }


def by_table(graph: Sequence[Node], table: OperatorTable) -> dict[str, Any]:
    """One graph's part of what `placement` returns, from a table; it does not say who runs what is left."""
    refusals = [table.refusal(node) for node in graph]
    taken = {index for index, refusal in enumerate(refusals) if refusal is None}
    left = [
        {"name": node.name, "operator": node.label, "provider": None, "reason": refusal}
        for node, refusal in zip(graph, refusals, strict=True)
        if refusal is not None
    ]
    counted = [(node.name, node.label, index in taken) for index, node in enumerate(graph)]
    return _counts(counted, left, len(partitions(graph, taken)))


def by_assignment(
    graph: Sequence[Node], answer: Assignment, onnxruntime_name: str, table: OperatorTable | None
) -> dict[str, Any]:
    """One graph's part of what `placement` returns, from ONNX Runtime's answer; ``table`` may know the reasons."""
    known = {node.name: node for node in graph if node.name}
    left = [
        {
            "name": node.name,
            "operator": node.operator,
            "provider": node.provider,
            "reason": _reason(known.get(node.name), table),
        }
        for node in answer.nodes
        if node.provider != onnxruntime_name
    ]
    counted = [(node.name, node.operator, node.provider == onnxruntime_name) for node in answer.nodes]
    pieces = answer.compiled
    if pieces is None:
        rest = _without_folded(graph, {node.name for node in answer.nodes})
        own = {node.name for node in answer.nodes if node.provider == onnxruntime_name}
        pieces = len(partitions(rest, {index for index, node in enumerate(rest) if node.name in own}))
    return _counts(counted, left, pieces)


def _counts(counted: Sequence[tuple[str, str, bool]], left: list[dict[str, Any]], pieces: int) -> dict[str, Any]:
    """``counted``: name, operator and whether it is taken, of each node."""
    total, taken = Counter(label for _, label, _ in counted), Counter(label for _, label, own in counted if own)
    names = [name for name, _, own in counted if own]
    return {
        "nodes": len(counted),
        "taken": len(names),
        "share": round(len(names) / len(counted), 4) if counted else 0.0,
        "partitions": pieces,
        "operators": {
            label: {"nodes": number, "taken": taken[label]}
            for label, number in sorted(total.items(), key=lambda item: (-item[1], item[0]))
        },
        "names": names,
        "left": left,
        "problem": None,
    }


def _unloadable(graph: Sequence[Node], onnxruntime_name: str, problem: str) -> dict[str, Any]:
    """The part of a graph that ONNX Runtime does not load."""
    left = [{"name": n.name, "operator": n.label, "provider": None, "reason": "the graph does not load"} for n in graph]
    return {
        **_counts([(node.name, node.label, False) for node in graph], left, 0),
        "problem": f"{onnxruntime_name}: {problem}",
    }


def _reason(node: Node | None, table: OperatorTable | None) -> str:
    if node is None:
        return "a node that ONNX Runtime made; it does not say why"
    refusal = None if table is None else table.refusal(node)
    if refusal is not None:
        return refusal
    if node.dtype in ("int32", "int64", "bool"):
        return "on shapes or lengths, which ONNX Runtime keeps on the CPU where they are needed"
    return "ONNX Runtime does not say why"


def _without_folded(graph: Sequence[Node], kept: Collection[str]) -> list[Node]:
    """The nodes of ``kept`` names alone; what the others gave is replaced by what they took."""
    origin: dict[str, tuple[str, ...]] = {}
    rest = []
    for node in graph:
        inputs = tuple(dict.fromkeys(source for name in node.inputs for source in origin.get(name, (name,))))
        if node.name in kept:
            rest.append(replace(node, inputs=inputs))
        else:
            origin.update(dict.fromkeys(node.outputs, inputs))
    return rest


def _graphs(bundle: Bundle, provider: str) -> tuple[list[str], dict[str, str]]:
    """The graphs to look at, and those to skip with the reason."""
    looked: list[str] = []
    skipped: dict[str, str] = {}
    for name in bundle.manifest.graphs:
        if provider == bundle.manifest.package.get("execution_provider") and (reason := unloadable(bundle)):
            skipped[name] = reason
        elif name not in contract.NATIVE_GRAPH_FILES:
            looked.append(name)
        elif provider != CPU.name or bundle.manifest.recipe.get("execution_provider", CPU.name) != CPU.name:
            skipped[name] = "its operators are helium-onnx's own, for the bundle's own provider alone"
        elif kernels.library() is None:
            skipped[name] = "this machine has no library of native kernels"
        else:
            looked.append(name)
    return looked, skipped


def _problem(bundle: Bundle, provider: str, found: dict[str, dict[str, Any]]) -> tuple[str | None, list[str]]:
    """Why the provider cannot serve the bundle, and the recipes whose bundles it serves."""
    row, table = PROVIDERS.get(provider), TABLES.get(provider)
    recipes = list(row.recipes if row is not None else table.recipes if table is not None else ())
    for name in ("prefill", "decode"):
        operators = found[name]["operators"] if name in found else {}
        products = {label: operators[label] for label in PRODUCTS if label in operators}
        if products and not any(count["taken"] for count in products.values()):
            left = [one["reason"] for one in found[name]["left"] if one["operator"] in products]
            ((reason, _),) = Counter(left).most_common(1)
            what = " and ".join(products)
            return f"{provider} cannot run this bundle: it takes no {what} of {name}, as {reason}", recipes
    if row is None:
        return None, []
    try:
        bundle_provider(bundle, provider)
    except ProviderError as error:
        return f"{provider} is not what this bundle is for: {error.found}", recipes
    return None, []


def _text(error: ProviderError) -> str:
    return error.what if error.found is None else f"{error.what}: {error.found}"
