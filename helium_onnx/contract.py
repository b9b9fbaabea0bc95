"""What the graphs take and give: one table, read by export, runtimes, tests and the README.

A row stands for one tensor, or for one tensor a layer where its name holds ``{i}``. Names are those that optimum,
onnxruntime-genai and transformers.js use. A dimension is a symbol (resolved at run time), or the name of a field of
the model's config, or an integer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, get_args

from helium_onnx.tasks import Task

Graph: TypeAlias = Literal["prefill", "decode", "model"]
NativeGraph: TypeAlias = Literal["native_prefill", "native_decode", "native_model"]
#: Keys of the table's rows for bundles of the provider CUDA, whose files and manifests call them by the names above.
CudaGraph: TypeAlias = Literal["cuda_prefill", "cuda_decode", "cuda_native_decode"]
#: Likewise of graphs whose shapes are fixed (a recipe's ``graph.context``), as NPUs take them.
StaticGraph: TypeAlias = Literal["static_prefill", "static_decode"]
#: Likewise of the one graph that a task without generation has, ``model``, and of its form over our own kernels.
TaskGraph: TypeAlias = Literal["feature-extraction", "text-classification", "token-classification"]
NativeTaskGraph: TypeAlias = Literal[
    "native-feature-extraction", "native-text-classification", "native-token-classification"
]
AnyGraph: TypeAlias = Graph | NativeGraph | CudaGraph | StaticGraph | TaskGraph | NativeTaskGraph
Direction: TypeAlias = Literal["input", "output"]

GRAPHS: tuple[Graph, ...] = ("prefill", "decode", "model")
#: Of quantized bundles for CPUs, beside those: over the operators of helium_onnx/kernels.
NATIVE_GRAPHS: tuple[NativeGraph, ...] = ("native_prefill", "native_decode")
#: The native graphs that a provider's bundles may have, all or none: by the recipe's ``execution_provider``.
NATIVE_GRAPHS_OF: dict[str, tuple[NativeGraph, ...]] = {
    "cpu": NATIVE_GRAPHS,
    "cuda": ("native_decode",),
    "qnn": (),
    "coreml": (),
}
#: The graphs that have other rows for a provider than for all: by ``execution_provider``. model.onnx is for all.
ROWS_OF: dict[str, dict[Graph | NativeGraph, CudaGraph | StaticGraph]] = {
    "cpu": {},
    "cuda": {"prefill": "cuda_prefill", "decode": "cuda_decode", "native_decode": "cuda_native_decode"},
    "qnn": {"prefill": "static_prefill", "decode": "static_decode"},
    "coreml": {"prefill": "static_prefill", "decode": "static_decode"},
}
_CUDA: tuple[CudaGraph, ...] = ("cuda_prefill", "cuda_decode", "cuda_native_decode")
_STATIC: tuple[StaticGraph, ...] = ("static_prefill", "static_decode")
_TASKS: tuple[TaskGraph, ...] = get_args(TaskGraph)
_NATIVE_TASKS: tuple[NativeTaskGraph, ...] = get_args(NativeTaskGraph)


def graphs_of(task: Task) -> tuple[Graph, ...]:
    """The graphs that every bundle of a task has, but for packages."""
    return GRAPHS if task == "text-generation" else ("model",)


def native_graphs_of(task: Task, execution_provider: str) -> tuple[NativeGraph, ...]:
    """The native graphs that a provider's bundles of a task may have, all or none."""
    if task == "text-generation":
        return NATIVE_GRAPHS_OF.get(execution_provider, NATIVE_GRAPHS)
    return ("native_model",) if execution_provider == "cpu" else ()


#: Files of the graphs inside a bundle, and the one file of their weights.
GRAPH_FILES: dict[Graph, str] = {
    "prefill": "onnx/prefill.onnx",
    "decode": "onnx/decode.onnx",
    "model": "onnx/model.onnx",
}
NATIVE_GRAPH_FILES: dict[NativeGraph, str] = {
    "native_prefill": "onnx/prefill.native.onnx",
    "native_decode": "onnx/decode.native.onnx",
    "native_model": "onnx/model.native.onnx",
}
WEIGHTS_FILE = "onnx/model.onnx_data"

#: Dimensions that are known only at run time. ``batch_size`` is spelled so because transformers.js asks for it.
SYMBOLS = ("batch_size", "sequence_length", "past_sequence_length", "total_sequence_length", "context_length")


class HasSizes(Protocol):
    """The part of a config that resolves the table's dimensions."""

    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_labels(self) -> int: ...
    @property
    def pad_token_id(self) -> int | None: ...
    @property
    def task(self) -> Task: ...


@dataclass(frozen=True)
class Window:
    """The fixed sizes of static graphs: keys and values for ``context`` tokens, prefill of ``prefill_chunk`` tokens at
    a time (the last ones padded), decode of one.
    """

    context: int
    prefill_chunk: int

    def sizes(self, graph: StaticGraph) -> dict[str, int]:
        """What stands in the table's rows of ``graph`` for the symbols."""
        new = self.prefill_chunk if graph == "static_prefill" else 1
        return {
            "batch_size": 1,
            "sequence_length": new,
            "context_length": self.context,
            "total_sequence_length": self.context + new,
        }


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: ``dtype`` is ONNX's name in lower case (``int64``, ``float32``), dims as in the table."""

    name: str
    dtype: str
    dims: tuple[str | int, ...]

    def __str__(self) -> str:
        return f"{self.name} [{', '.join(map(str, self.dims))}] {self.dtype}"


@dataclass(frozen=True)
class Row:
    """A row of the table. ``dtype`` may be ``compute`` or ``cache``: the recipe's precision decides."""

    direction: Direction
    name: str
    dtype: str
    dims: tuple[str | int, ...]
    graphs: tuple[AnyGraph, ...]
    note: str


TABLE: tuple[Row, ...] = (
    Row("input", "input_ids", "int64", ("batch_size", "sequence_length"), (*GRAPHS, *NATIVE_GRAPHS),
        "new tokens; decode takes 1 a row, or a few to verify a draft"),
    Row("input", "attention_mask", "int64", ("batch_size", "total_sequence_length"), GRAPHS,
        "1 for a token, 0 for padding, over past and new tokens"),
    Row("input", "past_key_values.{i}.key", "cache",
        ("batch_size", "num_key_value_heads", "past_sequence_length", "head_dim"), GRAPHS,
        "may be the same buffer as present, of the full context"),
    Row("input", "past_key_values.{i}.value", "cache",
        ("batch_size", "num_key_value_heads", "past_sequence_length", "head_dim"), GRAPHS, "likewise"),
    Row("output", "logits", "compute", ("batch_size", 1, "vocab_size"), ("prefill",),
        "of each row's last token alone"),
    Row("output", "logits", "compute", ("batch_size", "sequence_length", "vocab_size"), ("decode", "model"),
        "of all new tokens"),
    Row("output", "present.{i}.key", "cache",
        ("batch_size", "num_key_value_heads", "total_sequence_length", "head_dim"), GRAPHS,
        "past and new keys, rotated"),
    Row("output", "present.{i}.value", "cache",
        ("batch_size", "num_key_value_heads", "total_sequence_length", "head_dim"), GRAPHS, "past and new values"),
    Row("input", "past_lengths", "int64", ("batch_size",), NATIVE_GRAPHS, "tokens that each row's past holds"),
    Row("input", "past_key_values.{i}.key", "float16",
        ("batch_size", "num_key_value_heads", "context_length", "head_dim"), NATIVE_GRAPHS,
        "a buffer for the whole context; may be the same as present"),
    Row("input", "past_key_values.{i}.value", "float16",
        ("batch_size", "num_key_value_heads", "context_length", "head_dim"), NATIVE_GRAPHS, "likewise"),
    Row("output", "logits", "compute", ("batch_size", 1, "vocab_size"), ("native_prefill",),
        "of each row's last token alone"),
    Row("output", "logits", "compute", ("batch_size", "sequence_length", "vocab_size"), ("native_decode",),
        "of all new tokens"),
    Row("output", "present.{i}.key", "float16",
        ("batch_size", "num_key_value_heads", "context_length", "head_dim"), NATIVE_GRAPHS,
        "with the new keys, rotated"),
    Row("output", "present.{i}.value", "float16",
        ("batch_size", "num_key_value_heads", "context_length", "head_dim"), NATIVE_GRAPHS, "with the new values"),
    # Lengths come from outside: a graph that computes them keeps nodes on the CPU, and cannot be captured.
    Row("input", "input_ids", "int64", ("batch_size", "sequence_length"), ("cuda_prefill", "cuda_decode"),
        "new tokens, without padding; several of them with a past for one row at a time"),
    Row("input", "input_ids", "int64", ("batch_size", 1), ("cuda_native_decode",), "one new token a row"),
    Row("input", "seqlens_k", "int32", ("batch_size",), _CUDA, "tokens of past and new together, less one"),
    Row("input", "total_sequence_length", "int32", (), ("cuda_prefill", "cuda_decode"),
        "on the host: the most tokens of past and new together that a row has, or the context length"),
    Row("input", "past_key_values.{i}.key", "cache",
        ("batch_size", "num_key_value_heads", "context_length", "head_dim"), _CUDA,
        "a buffer for the whole context; the same as present"),
    Row("input", "past_key_values.{i}.value", "cache",
        ("batch_size", "num_key_value_heads", "context_length", "head_dim"), _CUDA, "likewise"),
    Row("output", "logits", "float32", ("batch_size", 1, "vocab_size"), ("cuda_prefill", "cuda_native_decode"),
        "of the last new token alone"),
    Row("output", "logits", "float32", ("batch_size", "sequence_length", "vocab_size"), ("cuda_decode",),
        "of all new tokens"),
    Row("output", "next_token_ids", "int64", ("batch_size", 1), ("cuda_prefill", "cuda_native_decode"),
        "where the logits are largest: the greedy choice"),
    Row("output", "next_token_ids", "int64", ("batch_size", "sequence_length"), ("cuda_decode",), "likewise"),
    Row("output", "present.{i}.key", "cache",
        ("batch_size", "num_key_value_heads", "context_length", "head_dim"), _CUDA, "with the new keys, rotated"),
    Row("output", "present.{i}.value", "cache",
        ("batch_size", "num_key_value_heads", "context_length", "head_dim"), _CUDA, "with the new values"),
    # Past and new keys and values stay apart: past is one buffer for both graphs, read from the first slot on, and only
    # what is new leaves the device. The runtime writes it behind the past, and drops what padding gave.
    Row("input", "input_ids", "int64", ("batch_size", "sequence_length"), _STATIC,
        "new tokens of one row; prefill's last ones may be padding"),
    Row("input", "position_ids", "int64", ("batch_size", "sequence_length"), _STATIC,
        "of the new tokens; anything below the context for padding"),
    Row("input", "attention_mask", "compute", ("batch_size", 1, "sequence_length", "total_sequence_length"), _STATIC,
        "added to the scores: 0 where a new token (row) sees a slot of the past or, behind those, a new token "
        "(column), a large negative number elsewhere"),
    Row("input", "last_position", "int64", (1,), ("static_prefill",), "index of the last new token that is no padding"),
    Row("input", "past_key_values.{i}.key", "cache",
        ("batch_size", "num_key_value_heads", "context_length", "head_dim"), _STATIC,
        "the whole context's slots; what the mask hides may be anything finite"),
    Row("input", "past_key_values.{i}.value", "cache",
        ("batch_size", "num_key_value_heads", "context_length", "head_dim"), _STATIC, "likewise"),
    Row("output", "logits", "compute", ("batch_size", 1, "vocab_size"), _STATIC, "of the last new token alone"),
    Row("output", "present.{i}.key", "cache",
        ("batch_size", "num_key_value_heads", "sequence_length", "head_dim"), _STATIC,
        "of the new tokens alone, rotated"),
    Row("output", "present.{i}.value", "cache",
        ("batch_size", "num_key_value_heads", "sequence_length", "head_dim"), _STATIC, "of the new tokens alone"),
    # Tasks without generation: whole texts, and no past. Outputs are float32 whatever the graph computes in.
    Row("input", "input_ids", "int64", ("batch_size", "sequence_length"), (*_TASKS, *_NATIVE_TASKS),
        "whole texts, padded on either side (for our own kernels: on the right)"),
    Row("input", "attention_mask", "int64", ("batch_size", "sequence_length"), _TASKS, "1 for a token, 0 for padding"),
    Row("output", "last_hidden_state", "float32", ("batch_size", "sequence_length", "hidden_size"),
        ("feature-extraction", "native-feature-extraction"), "behind the last norm"),
    Row("output", "logits", "float32", ("batch_size", "num_labels"),
        ("text-classification", "native-text-classification"),
        "of the rightmost token that is no padding (pad_token_id; a model without one takes one row)"),
    Row("output", "logits", "float32", ("batch_size", "sequence_length", "num_labels"),
        ("token-classification", "native-token-classification"), "of every token"),
)  # fmt: skip


def graph_file(graph: Graph | NativeGraph) -> str:
    """The graph's file inside a bundle."""
    for native, file in NATIVE_GRAPH_FILES.items():
        if native == graph:
            return file
    return next(file for name, file in GRAPH_FILES.items() if name == graph)


def _key(graph: Graph | NativeGraph, execution_provider: str, task: Task) -> str:
    """What names the graph's rows in the table."""
    if task != "text-generation":
        return f"native-{task}" if graph == "native_model" else task
    return ROWS_OF.get(execution_provider, {}).get(graph, graph)


def rows(
    graph: Graph | NativeGraph, direction: Direction, execution_provider: str = "cpu", task: Task = "text-generation"
) -> Iterator[Row]:
    """The rows of one graph, inputs or outputs, in the graph's order, for bundles of one provider and task.

    A provider that is not known has the rows of the CPU.
    """
    key = _key(graph, execution_provider, task)
    return (row for row in TABLE if key in row.graphs and row.direction == direction)


def tensors(
    graph: Graph | NativeGraph,
    direction: Direction,
    config: HasSizes,
    *,
    compute: str = "float32",
    cache: str = "float32",
    execution_provider: str = "cpu",
    window: Window | None = None,
) -> tuple[TensorSpec, ...]:
    """The table's rows of one graph for one model: layers unrolled, sizes filled in, dtypes resolved.

    ``compute``, ``cache`` and ``execution_provider`` are the recipe's; ``window`` resolves the symbols of static
    graphs, which keep them without.

    A row with ``{i}`` is repeated with its neighbours, layer by layer: ``key`` and ``value`` of layer 0, then of 1.
    """
    dtypes = {"compute": compute, "cache": cache}
    key = _key(graph, execution_provider, config.task)
    static = next((static for static in _STATIC if static == key), None)
    sizes = window.sizes(static) if window is not None and static is not None else {}
    if config.task == "text-classification" and config.pad_token_id is None:
        sizes["batch_size"] = 1  # nothing tells where a shorter row ends

    def resolved(dim: str | int) -> str | int:
        if isinstance(dim, int):
            return dim
        return sizes.get(dim, dim) if dim in SYMBOLS else int(getattr(config, dim))

    def spec(row: Row, layer: int) -> TensorSpec:
        dims = tuple(resolved(dim) for dim in row.dims)
        return TensorSpec(row.name.format(i=layer), dtypes.get(row.dtype, row.dtype), dims)

    chosen = list(rows(graph, direction, execution_provider, config.task))
    once = [spec(row, 0) for row in chosen if "{i}" not in row.name]
    layered = [row for row in chosen if "{i}" in row.name]
    return (*once, *(spec(row, i) for i in range(config.num_hidden_layers) for row in layered))


#: Columns of the printed table: what stands above it, and the graph whose rows it has; by ``execution_provider``.
_COLUMNS: dict[str, tuple[tuple[str, Graph | NativeGraph], ...]] = {
    "cpu": (("`prefill.onnx`", "prefill"), ("`decode.onnx`, `model.onnx`", "decode")),
    "cuda": (("`prefill.onnx`", "prefill"), ("`decode.onnx`", "decode"), ("`decode.native.onnx`", "native_decode")),
    "qnn": (("`prefill.onnx`", "prefill"), ("`decode.onnx`", "decode")),
}


def markdown(execution_provider: str = "cpu") -> str:
    """The table as README.md (for the CPU) and export/README.md (for CUDA and QNN) print it: of text generation."""
    columns = _COLUMNS[execution_provider]
    lines = [f"| | {' | '.join(title for title, _ in columns)} | |", f"|{'---|' * (len(columns) + 2)}"]
    seen: dict[str, dict[str, Row]] = {}
    for direction in get_args(Direction):
        for _, graph in columns:
            for row in rows(graph, direction, execution_provider):
                seen.setdefault(row.name, {})[graph] = row
    for name, by_graph in seen.items():
        cells: list[str] = []
        before: Row | None = None
        for _, graph in columns:
            here = by_graph.get(graph)
            text = "" if here is None else f"`[{', '.join(map(str, here.dims))}]` {here.dtype}"
            cells.append("the same" if here is not None and here is before else text)
            before = here
        notes = " / ".join(dict.fromkeys(row.note for row in by_graph.values()))
        lines.append(f"| `{name}` | {' | '.join(cells)} | {notes} |")
    return "\n".join(lines)
