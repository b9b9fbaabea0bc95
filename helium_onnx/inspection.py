"""What is in a bundle, and where every byte of its weights goes; read from the manifest, not from the graphs."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from helium_onnx.bundle import Bundle
from helium_onnx.contract import WEIGHTS_FILE, TensorSpec
from helium_onnx.manifest import MANIFEST_FILE, Manifest, TensorRecord

if TYPE_CHECKING:
    from rich.console import Console

#: Parts of the model and what marks their tensors' names; the first row that matches counts.
PARTS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("embedding", re.compile(r"\bembed_tokens\b")),
    ("attention", re.compile(r"\bself_attn\b")),
    ("mlp", re.compile(r"\bmlp\b")),
    ("norms", re.compile(r"norm\b")),
    ("head", re.compile(r"\b(lm_head|score|classifier)\b")),
    ("rope tables", re.compile(r"(^|[._])(cos|sin|cos_cache|sin_cache|inv_freq)($|[._])")),
)
OTHER = "other"
OUTSIDE = "outside the layers"

#: Endings that the quantizers give their tensors (helium_onnx.exporter.stored_tensors).
KINDS = {"quantized": "quantized weights", "scales": "scales", "zero_points": "zero points"}


def inspect(path: str | os.PathLike[str], *, provider: str | None = None) -> dict[str, Any]:
    """What a bundle holds. Only helium.json is read; of the other files, the sizes.

    With ``provider``, what `helium_onnx.placement.placement` returns instead, for which graphs are read and loaded.

    Returns:
        A dict that can be written as JSON. ``package``: what the manifest says of a package, {} of another bundle.
        ``graphs``: per graph its ``file``, ``bytes``, ``inputs`` and ``outputs``
        (one text each, layers folded into one) and ``operators`` (counts). ``files``: ``path``, ``bytes``, ``sha256``.
        ``weights``: ``bytes`` of the weights file, and three ways to divide them (``by_part``, ``by_layer``,
        ``by_kind``), each of which, with ``padding``, sums to ``bytes``; ``bits_per_weight`` over all matrices and per
        part (None where the config lacks a size).

    Raises:
        BundleError: as `Bundle.open`.
        UsageError: there is no such provider.
    """
    bundle = Bundle.open(path)
    if provider is not None:
        from helium_onnx.placement import placement  # ONNX Runtime is not loaded to read a manifest

        return placement(bundle, provider)
    manifest = bundle.manifest
    sizes = {file.path: file.size for file in manifest.files}
    return {
        "path": str(bundle.path),
        "digest": bundle.digest,
        "format_version": manifest.format_version,
        "helium_onnx": manifest.helium_onnx,
        "task": manifest.task,
        "licence": manifest.licence,
        "recipe": manifest.recipe,
        "package": manifest.package,
        "tools": manifest.tools,
        "graphs": {
            name: {
                "file": graph.file,
                "bytes": sizes[graph.file],
                "inputs": fold(graph.inputs),
                "outputs": fold(graph.outputs),
                "operators": dict(sorted(graph.operators.items(), key=lambda item: (-item[1], item[0]))),
            }
            for name, graph in manifest.graphs.items()
        },
        "files": [
            {"path": MANIFEST_FILE, "bytes": (bundle.path / MANIFEST_FILE).stat().st_size, "sha256": None},
            *({"path": file.path, "bytes": file.size, "sha256": file.sha256} for file in manifest.files),
        ],
        "total_bytes": bundle.total_bytes + (bundle.path / MANIFEST_FILE).stat().st_size,
        "weights": _weights(manifest, sizes[WEIGHTS_FILE]) if WEIGHTS_FILE in sizes else None,
    }


def fold(specs: Iterable[TensorSpec]) -> list[str]:
    """Inputs or outputs as text, those that differ only in a number in their name as one: ``present.{0..23}.key``."""
    groups: defaultdict[TensorSpec, list[int]] = defaultdict(list)
    for spec in specs:
        number = re.search(r"(?<=\.)\d+(?=\.)", spec.name)
        name = spec.name if number is None else f"{spec.name[: number.start()]}{{}}{spec.name[number.end() :]}"
        groups[TensorSpec(name, spec.dtype, spec.dims)] += [] if number is None else [int(number[0])]
    return [str(spec).replace("{}", f"{{{_ranges(layers)}}}", 1) for spec, layers in groups.items()]


def _ranges(numbers: list[int]) -> str:
    """``0..3,5`` for 0, 1, 2, 3, 5."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}..{last}" for first, last in runs)


def _weights(manifest: Manifest, size: int) -> dict[str, Any]:
    """The weights file of ``size`` bytes, divided. Bytes that two tensors share count for the first of them."""
    own: list[tuple[TensorRecord, int]] = []
    end = 0
    for tensor in sorted(manifest.tensors, key=lambda tensor: (tensor.offset, tensor.name)):
        last = tensor.offset + tensor.nbytes
        own.append((tensor, max(0, last - max(end, tensor.offset))))
        end = max(end, last)

    def divide(key: Callable[[TensorRecord], str]) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for tensor, count in own:
            counts[key(tensor)] += count
        return dict(counts)

    by_part = divide(_part)
    return {
        "file": WEIGHTS_FILE,
        "bytes": size,
        "tensors": len(own),
        "padding": size - sum(count for _, count in own),
        "by_part": {name: by_part[name] for name in [*(part for part, _ in PARTS), OTHER] if name in by_part},
        "by_layer": divide(_layer),
        "by_kind": divide(_kind),
        "bits_per_weight": _bits_per_weight(own, manifest.model_config),
    }


def _part(tensor: TensorRecord) -> str:
    # The name before the source: a head that is tied to the embedding but stored once more is the head's cost.
    texts = (tensor.name, tensor.source)
    return next((part for text in texts for part, pattern in PARTS if pattern.search(text)), OTHER)


def _layer(tensor: TensorRecord) -> str:
    found = next(
        (match for text in (tensor.name, tensor.source) if (match := re.search(r"\blayers\.(\d+)\.", text))), None
    )
    return f"layer {found[1]}" if found else OUTSIDE


def _kind(tensor: TensorRecord) -> str:
    return f"{KINDS.get(tensor.name.rpartition('.')[2], 'plain')} ({tensor.dtype})"


def _bits_per_weight(own: list[tuple[TensorRecord, int]], config: dict[str, Any]) -> dict[str, float] | None:
    """Stored bits over the elements of the checkpoint's matrices, scales and zero points included; ``all`` and by part.

    A matrix that is stored twice (a tied head in another layout) has its elements once and its bits twice.
    """
    shapes = matrix_shapes(config)
    if shapes is None:
        return None
    bits: Counter[str] = Counter()
    elements: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for tensor, count in own:
        names = tensor.source.split("+")
        sizes = {name: shapes[key] for name in names if (key := ".".join(name.split(".")[-2:])) in shapes}
        if len(sizes) == len(names):
            for group in ("all", _part(tensor)):
                bits[group] += 8 * count
                elements[group].update(sizes)
    return {group: round(bits[group] / total, 4) for group in bits if (total := sum(elements[group].values()))}


def matrix_shapes(config: dict[str, Any]) -> dict[str, int] | None:
    """Elements of each kind of matrix in a Helium or Llama checkpoint, by the last two parts of its name.

    None where config.json lacks a size. Source: transformers, models/helium/modeling_helium.py.
    """

    def size(key: str, default: int = 0) -> int:
        value = config.get(key)
        return value if type(value) is int and value > 0 else default

    hidden, inner, vocabulary = size("hidden_size"), size("intermediate_size"), size("vocab_size")
    heads = size("num_attention_heads")
    if not (hidden and inner and vocabulary and heads):
        return None
    head_dim = size("head_dim", hidden // heads)
    query, key_value = heads * head_dim * hidden, size("num_key_value_heads", heads) * head_dim * hidden
    return {
        "embed_tokens.weight": vocabulary * hidden,
        "lm_head.weight": vocabulary * hidden,
        "q_proj.weight": query,
        "k_proj.weight": key_value,
        "v_proj.weight": key_value,
        "o_proj.weight": query,
        "gate_proj.weight": inner * hidden,
        "up_proj.weight": inner * hidden,
        "down_proj.weight": inner * hidden,
    }


def _place(package: dict[str, Any]) -> str:
    """``android-qnn, Snapdragon 8 Gen 3 (75/57)``, or the target alone."""
    device = f", {package['device']} ({package.get('soc')})" if "device" in package else ""
    return f"{package.get('target')}{device}"


def render(info: dict[str, Any], console: Console) -> None:
    """Print what `inspect` returned as tables."""
    if "execution_provider" in info:
        from helium_onnx.placement import text

        text.render(info, console)
        return
    from rich.table import Table
    from rich.text import Text

    def table(title: str, columns: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
        result = Table(title=title, title_justify="left", show_edge=False, pad_edge=False, show_header=any(columns))
        for i, column in enumerate(columns):
            result.add_column(
                column, justify="right" if i and column not in ("", "SHA-256") else "left", overflow="fold"
            )
        for row in rows:
            result.add_row(*(Text(str(cell)) for cell in row))  # Text: brackets in shapes are no markup
        console.print(result)
        console.print()

    table(f"bundle {info['path']}", ("", ""), (
        ("digest", info["digest"]), ("format version", info["format_version"]), ("task", info["task"]),
        ("licence", info["licence"] or "not stated"), ("written by", f"helium-onnx {info['helium_onnx']}"),
        *([("packaged for", _place(info["package"]))] if info["package"] else []), *info["tools"].items(),
    ))  # fmt: skip
    table("files", ("file", "bytes", "SHA-256"), (
        *((file["path"], f"{file['bytes']:,}", file["sha256"] or "") for file in info["files"]),
        ("total", f"{info['total_bytes']:,}", ""),
    ))  # fmt: skip
    for name, graph in info["graphs"].items():
        rows = [("input", text) for text in graph["inputs"]] + [("output", text) for text in graph["outputs"]]
        table(f"{name}: {graph['file']}, {graph['bytes']:,} bytes", ("", ""), rows)
        total = sum(graph["operators"].values())
        table(f"{name}: {total} nodes", ("operator", "nodes"), graph["operators"].items())
    if (weights := info["weights"]) is None:
        return
    bits = weights["bits_per_weight"] or {}
    everything = max(1, weights["bytes"])
    for title, columns in (("part", 4), ("kind", 3), ("layer", 3)):  # bits a weight are known by part alone
        counts = [*weights[f"by_{title}"].items(), ("padding", weights["padding"]), ("total", weights["bytes"])]
        cells = [
            (label, f"{n:,}", f"{n / everything:.1%}", bits.get(label.replace("total", "all"), ""))
            for label, n in counts
        ]
        header = (title, "bytes", "share", "bits a weight")
        table(f"weights by {title}: {weights['file']}", header[:columns], (row[:columns] for row in cells))
