"""The table of inputs and outputs: what it says, and that the README prints it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import pytest

from helium_onnx import contract, recipe
from helium_onnx.tasks import TASKS, Task

README = Path(__file__).parents[1] / "README.md"
RECIPES = Path(__file__).parents[1] / "export" / "README.md"


@dataclasses.dataclass
class Sizes:
    num_hidden_layers: int = 2
    num_key_value_heads: int = 3
    head_dim: int = 8
    vocab_size: int = 11
    hidden_size: int = 24
    num_labels: int = 5
    pad_token_id: int | None = 3
    task: Task = "text-generation"


PAST = "['batch_size', 3, 'past_sequence_length', 8]".replace("'", "")
PRESENT = PAST.replace("past_", "total_")


@pytest.mark.parametrize("graph", contract.GRAPHS)
def test_inputs_come_layer_by_layer(graph: contract.Graph) -> None:
    assert [str(spec) for spec in contract.tensors(graph, "input", Sizes())] == [
        "input_ids [batch_size, sequence_length] int64",
        "attention_mask [batch_size, total_sequence_length] int64",
        f"past_key_values.0.key {PAST} float32",
        f"past_key_values.0.value {PAST} float32",
        f"past_key_values.1.key {PAST} float32",
        f"past_key_values.1.value {PAST} float32",
    ]


@pytest.mark.parametrize(
    ("graph", "positions"), [("prefill", "1"), ("decode", "sequence_length"), ("model", "sequence_length")]
)
def test_outputs_come_layer_by_layer(graph: contract.Graph, positions: str) -> None:
    assert [str(spec) for spec in contract.tensors(graph, "output", Sizes())] == [
        f"logits [batch_size, {positions}, 11] float32",
        f"present.0.key {PRESENT} float32",
        f"present.0.value {PRESENT} float32",
        f"present.1.key {PRESENT} float32",
        f"present.1.value {PRESENT} float32",
    ]


SLOTS = PAST.replace("past_sequence_length", "context_length")


@pytest.mark.parametrize(("graph", "positions"), [("native_prefill", "1"), ("native_decode", "sequence_length")])
@pytest.mark.parametrize("cache", ["float32", "float16"])
def test_native_graphs(graph: contract.NativeGraph, positions: str, cache: str) -> None:
    """Keys and values are float16 there, whatever the recipe's are elsewhere."""
    sizes = Sizes(num_hidden_layers=1)
    assert [str(spec) for spec in contract.tensors(graph, "input", sizes, cache=cache)] == [
        "input_ids [batch_size, sequence_length] int64",
        "past_lengths [batch_size] int64",
        f"past_key_values.0.key {SLOTS} float16",
        f"past_key_values.0.value {SLOTS} float16",
    ]
    assert [str(spec) for spec in contract.tensors(graph, "output", sizes, cache=cache)] == [
        f"logits [batch_size, {positions}, 11] float32",
        f"present.0.key {SLOTS} float16",
        f"present.0.value {SLOTS} float16",
    ]


@pytest.mark.parametrize(
    ("graph", "ids", "positions"),
    [
        ("prefill", "sequence_length", "1"),
        ("decode", "sequence_length", "sequence_length"),
        ("native_decode", "1", "1"),
    ],
)
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_graphs_for_cuda(graph: contract.Graph | contract.NativeGraph, ids: str, positions: str, kind: str) -> None:
    """Lengths are inputs; logits are float32 whatever is computed in; the cache has the type of the rest."""
    sizes, lengths = Sizes(num_hidden_layers=1), ["total_sequence_length [] int32"] if graph != "native_decode" else []
    precision = {"compute": kind, "cache": kind, "execution_provider": "cuda"}
    assert [str(spec) for spec in contract.tensors(graph, "input", sizes, **precision)] == [
        f"input_ids [batch_size, {ids}] int64",
        "seqlens_k [batch_size] int32",
        *lengths,
        f"past_key_values.0.key {SLOTS} {kind}",
        f"past_key_values.0.value {SLOTS} {kind}",
    ]
    assert [str(spec) for spec in contract.tensors(graph, "output", sizes, **precision)] == [
        f"logits [batch_size, {positions}, 11] float32",
        f"next_token_ids [batch_size, {positions}] int64",
        f"present.0.key {SLOTS} {kind}",
        f"present.0.value {SLOTS} {kind}",
    ]


def test_graphs_of_fixed_shapes() -> None:
    """Past has the slots of the whole context in both; present is what is new; no dimension is left open."""
    sizes, window = Sizes(num_hidden_layers=1), contract.Window(64, 16)
    kinds = {"compute": "float16", "cache": "float16", "execution_provider": "qnn"}
    for graph, new, last in (("prefill", 16, ["last_position [1] int64"]), ("decode", 1, [])):
        inputs, outputs = (
            [str(spec) for spec in contract.tensors(graph, direction, sizes, **kinds, window=window)]  # type: ignore[arg-type]
            for direction in ("input", "output")
        )
        assert inputs == [
            f"input_ids [1, {new}] int64",
            f"position_ids [1, {new}] int64",
            f"attention_mask [1, 1, {new}, {64 + new}] float16",
            *last,
            "past_key_values.0.key [1, 3, 64, 8] float16",
            "past_key_values.0.value [1, 3, 64, 8] float16",
        ]
        assert outputs == [
            "logits [1, 1, 11] float16",
            f"present.0.key [1, 3, {new}, 8] float16",
            f"present.0.value [1, 3, {new}, 8] float16",
        ]
    model = contract.tensors("model", "input", sizes, **kinds, window=window)  # type: ignore[arg-type]
    assert str(model[0]) == "input_ids [batch_size, sequence_length] int64"


@pytest.mark.parametrize("direction", ["input", "output"])
def test_model_is_the_same_for_every_provider(direction: contract.Direction) -> None:
    """But for its types: it is for other clients."""
    kinds = {"compute": "float16", "cache": "float16"}
    specs = [contract.tensors("model", direction, Sizes(), **kinds, execution_provider=p) for p in contract.ROWS_OF]
    assert all(spec == specs[0] for spec in specs)
    assert {spec.dtype for spec in specs[0]} == {"int64", "float16"} if direction == "input" else {"float16"}


def test_tasks_without_generation() -> None:
    """One graph each, whole texts, no past; over our own kernels without a mask. Outputs are float32 in any recipe."""
    ids, mask = ("input_ids [batch_size, sequence_length] int64", "attention_mask [batch_size, sequence_length] int64")
    outputs: dict[Task, str] = {
        "feature-extraction": "last_hidden_state [batch_size, sequence_length, 24] float32",
        "text-classification": "logits [batch_size, 5] float32",
        "token-classification": "logits [batch_size, sequence_length, 5] float32",
    }
    for task, output in outputs.items():
        sizes = Sizes(task=task)
        for provider in contract.ROWS_OF:
            kinds = {"compute": "float16", "execution_provider": provider}
            assert [str(spec) for spec in contract.tensors("model", "input", sizes, **kinds)] == [ids, mask]  # type: ignore[arg-type]
            assert [str(spec) for spec in contract.tensors("model", "output", sizes, **kinds)] == [output]  # type: ignore[arg-type]
        assert [str(spec) for spec in contract.tensors("native_model", "input", sizes)] == [ids]
        assert [str(spec) for spec in contract.tensors("native_model", "output", sizes)] == [output]


def test_a_classifier_without_padding_takes_one_row() -> None:
    sizes = Sizes(task="text-classification", pad_token_id=None)
    assert contract.tensors("model", "input", sizes)[0].dims == (1, "sequence_length")
    assert contract.tensors("model", "output", sizes)[0].dims == (1, 5)
    tokens = Sizes(task="token-classification", pad_token_id=None)  # its mask says what is padding
    assert contract.tensors("model", "input", tokens)[0].dims == ("batch_size", "sequence_length")


def test_every_row_is_some_graphs() -> None:
    """A key that no provider maps to would never be read."""
    reachable = {key for keys in contract.ROWS_OF.values() for key in keys.values()}
    assert reachable == {*get_args(contract.CudaGraph), *get_args(contract.StaticGraph)}
    tasks = {*get_args(contract.TaskGraph), *get_args(contract.NativeTaskGraph)}
    assert tasks == {f"{kind}{task}" for kind in ("", "native-") for task in TASKS if task != "text-generation"}
    known = {*contract.GRAPHS, *contract.NATIVE_GRAPHS, *reachable, *tasks}
    assert all(set(row.graphs) <= known for row in contract.TABLE)
    assert set(contract.ROWS_OF) == set(contract.NATIVE_GRAPHS_OF) == set(get_args(recipe.Provider))


def test_a_provider_that_is_not_known_has_the_cpus_rows() -> None:
    """A manifest may say anything; whoever runs it refuses it by name."""
    assert contract.tensors("decode", "input", Sizes(), execution_provider="npu") == contract.tensors(
        "decode", "input", Sizes()
    )


def test_precisions_reach_their_rows_alone() -> None:
    kinds = {
        spec.name: spec.dtype
        for direction in get_args(contract.Direction)
        for spec in contract.tensors("decode", direction, Sizes(num_hidden_layers=1), compute="float16", cache="int8")
    }
    assert kinds == {
        "input_ids": "int64",
        "attention_mask": "int64",
        "logits": "float16",
        "past_key_values.0.key": "int8",
        "past_key_values.0.value": "int8",
        "present.0.key": "int8",
        "present.0.value": "int8",
    }


def test_each_dimension_is_a_symbol_a_size_or_a_number() -> None:
    """A spelling of its own would be a field that no config has."""
    for row in contract.TABLE:
        for dim in row.dims:
            assert isinstance(dim, int) or dim in contract.SYMBOLS or hasattr(Sizes(), dim), row


def test_every_graph_has_a_file() -> None:
    assert set(contract.GRAPH_FILES) == set(contract.GRAPHS) == set(get_args(contract.Graph))
    assert set(contract.NATIVE_GRAPH_FILES) == {*contract.NATIVE_GRAPHS, "native_model"}
    assert set(contract.NATIVE_GRAPH_FILES) == set(get_args(contract.NativeGraph))
    files = [contract.graph_file(graph) for graph in (*contract.GRAPHS, *contract.NATIVE_GRAPHS, "native_model")]
    assert files == [*contract.GRAPH_FILES.values(), *contract.NATIVE_GRAPH_FILES.values()]
    assert len(set(files)) == 6


def test_the_table_has_a_line_for_each_name() -> None:
    lines = contract.markdown().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {len(row) for row in cells} == {4}
    portable = [row.name for row in contract.TABLE if set(row.graphs) & set(contract.GRAPHS)]
    assert [row[0].strip("`") for row in cells[2:]] == list(dict.fromkeys(portable))
    logits = next(row for row in cells if row[0] == "`logits`")
    assert logits[1] == "`[batch_size, 1, vocab_size]` compute"
    assert logits[2] == "`[batch_size, sequence_length, vocab_size]` compute"


def test_the_readme_prints_the_table() -> None:
    assert contract.markdown() in README.read_text(encoding="utf-8"), (
        "README.md has another table: python -c 'from helium_onnx import contract; print(contract.markdown())'"
    )


@pytest.mark.parametrize("provider", ["cuda", "qnn"])
def test_the_recipes_documentation_prints_the_others(provider: str) -> None:
    assert contract.markdown(provider) in RECIPES.read_text(encoding="utf-8"), (
        "export/README.md has another table: "
        f"python -c 'from helium_onnx import contract; print(contract.markdown(\"{provider}\"))'"
    )


def test_cudas_table_has_a_cell_for_every_graph() -> None:
    lines = [line.strip("|").split("|") for line in contract.markdown("cuda").splitlines()]
    assert {len(cells) for cells in lines} == {5}
    by_name = {cells[0].strip(" `"): [cell.strip() for cell in cells[1:4]] for cells in lines[2:]}
    assert by_name["total_sequence_length"] == ["`[]` int32", "the same", ""]
    assert by_name["input_ids"][2] == "`[batch_size, 1]` int64"
    assert "attention_mask" not in by_name
