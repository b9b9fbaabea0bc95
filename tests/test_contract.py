"""The table of inputs and outputs: what it says, and that the README prints it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import pytest

from helium_onnx import contract

README = Path(__file__).parents[1] / "README.md"


@dataclasses.dataclass
class Sizes:
    num_hidden_layers: int = 2
    num_key_value_heads: int = 3
    head_dim: int = 8
    vocab_size: int = 11


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
    assert set(contract.NATIVE_GRAPH_FILES) == set(contract.NATIVE_GRAPHS) == set(get_args(contract.NativeGraph))
    files = [contract.graph_file(graph) for graph in (*contract.GRAPHS, *contract.NATIVE_GRAPHS)]
    assert files == [*contract.GRAPH_FILES.values(), *contract.NATIVE_GRAPH_FILES.values()]
    assert len(set(files)) == 5


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
