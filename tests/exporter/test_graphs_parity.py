"""The graphs of a bundle, in plain ONNX Runtime, against ``transformers``: prefill, decode, padding, and the mutation.

Every row of a batch is compared with the same tokens alone and unpadded in ``transformers``.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import pytest
import reference
import tiny

import helium_onnx
from helium_onnx.config import HeliumConfig
from helium_onnx.contract import GRAPH_FILES, GRAPHS, Graph

LENGTH, STEPS = 64, 16

#: model_type, layers, key/value heads of 4 heads, tied embeddings. From 3 layers on RepeatLayers copies some.
MODELS: dict[str, tuple[str, int, int, bool]] = {
    "equal-heads-2-layers": ("helium", 2, 4, False),
    "grouped-4-layers": ("helium", 4, 2, False),
    "llama-grouped-4-layers": ("llama", 4, 2, False),
    "grouped-1-layer": ("helium", 1, 2, False),
    "tied-2-layers": ("helium", 2, 2, True),
}
RECIPES = ("cpu-fp32", "portable-fp32")
EXPORTS = [(model, recipe) for model in MODELS for recipe in RECIPES]


def name_of(export: tuple[str, str]) -> str:
    return "-".join(export)


#: Runs a test on the fused operators alone: standard ones make a new present, and have other attributes.
fused_operators = pytest.mark.parametrize(
    "exported", [export for export in EXPORTS if export[1] == "cpu-fp32"], ids=name_of, indirect=True
)


@dataclasses.dataclass(frozen=True)
class Exported:
    model: Any
    checkpoint: Path
    bundle: Path
    recipe: str
    graphs: reference.Graphs


@pytest.fixture(scope="module", params=EXPORTS, ids=name_of)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    name, recipe = request.param
    model_type, layers, kv_heads, tie = MODELS[name]
    model = reference.make_model(model_type, layers=layers, kv_heads=kv_heads, tie=tie)
    folder = tmp_path_factory.mktemp("parity")
    checkpoint = reference.save(model, folder / "checkpoint")
    bundle = helium_onnx.export(checkpoint, folder / "bundle", recipe=recipe)
    config = HeliumConfig.from_dict(bundle.model_config, source="bundle")
    yield Exported(model, checkpoint, bundle.path, recipe, reference.Graphs(bundle.path, config))
    shutil.rmtree(folder)


def rows_of(*lengths: int) -> list[np.ndarray]:
    return [reference.random_ids(1, length, seed=length)[0] for length in lengths]


def test_prefill_in_one_go(exported: Exported) -> None:
    (row,) = rows_of(LENGTH)
    expected = reference.logits_of(exported.model, row)
    prefill, present = exported.graphs.run("prefill", row[None])
    assert reference.error(prefill[0], expected[-1:]) <= reference.TOLERANCE
    for graph in ("model", "decode"):
        logits, others = exported.graphs.run(graph, row[None])
        assert reference.error(logits[0], expected) <= reference.TOLERANCE
        for one, other in zip(present, others, strict=True):
            assert reference.error(other, one) <= reference.TOLERANCE


@pytest.mark.parametrize("prefill", ["prefill", "model"])
def test_growing_past_over_16_steps(exported: Exported, prefill: Graph) -> None:
    """A past as optimum passes it on; keys and values that one graph made serve the other."""
    (row,) = rows_of(LENGTH + STEPS)
    expected = reference.logits_of(exported.model, row)
    _, past = exported.graphs.run(prefill, row[None, :LENGTH])
    for step in range(LENGTH, LENGTH + STEPS):
        logits, past = exported.graphs.run(
            "model" if prefill == "prefill" else "decode", row[None, step : step + 1], past=past
        )
        assert reference.error(logits[0], expected[step : step + 1]) <= reference.TOLERANCE
    assert past[0].shape[2] == LENGTH + STEPS


@fused_operators
@pytest.mark.parametrize("chunks", [[LENGTH], [40, 24], [1, 7, 8, 48], [63, 1]])
def test_chunked_prefill_then_decode_in_place(exported: Exported, chunks: list[int]) -> None:
    (row,) = rows_of(LENGTH + STEPS)
    expected = reference.logits_of(exported.model, row)
    buffers, length = exported.graphs.past(1, 128), np.zeros(1, np.int64)
    for size in chunks:
        done = int(length[0])
        logits = exported.graphs.run_in_place("prefill", row[None, done : done + size], length, buffers)
        length += size
        assert reference.error(logits[0], expected[length[0] - 1 : length[0]]) <= reference.TOLERANCE
    for step in range(LENGTH, LENGTH + STEPS):
        logits = exported.graphs.run_in_place("decode", row[None, step : step + 1], length, buffers)
        length += 1
        assert reference.error(logits[0], expected[step : step + 1]) <= reference.TOLERANCE
    assert all(
        np.isfinite(b[:, :, : LENGTH + STEPS]).all() and np.isnan(b[:, :, LENGTH + STEPS :]).all() for b in buffers
    )


def test_chunked_prefill_with_a_growing_past(exported: Exported) -> None:
    (row,) = rows_of(LENGTH)
    expected = reference.logits_of(exported.model, row)
    past = exported.graphs.past(1)
    for start, stop in ((0, 40), (40, 41), (41, LENGTH)):
        logits, past = exported.graphs.run("prefill", row[None, start:stop], past=past)
        assert reference.error(logits[0], expected[stop - 1 : stop]) <= reference.TOLERANCE


@fused_operators
def test_ragged_rows_decode_in_place(exported: Exported) -> None:
    """Continuous batching: each row is prefilled into its own slice, then all decode together."""
    rows = rows_of(LENGTH + STEPS, 9 + STEPS, 30 + STEPS)
    expected = [reference.logits_of(exported.model, row) for row in rows]
    buffers, lengths = exported.graphs.past(3, 128), np.zeros(3, np.int64)
    for i, row in enumerate(rows):
        slices = [buffer[i : i + 1] for buffer in buffers]
        exported.graphs.run_in_place("prefill", row[None, :-STEPS], lengths[i : i + 1], slices)
        lengths[i] = len(row) - STEPS
    for step in range(-STEPS, 0):
        ids = np.array([[row[step]] for row in rows])
        logits = exported.graphs.run_in_place("decode", ids, lengths, buffers)
        lengths += 1
        for i in range(3):
            assert reference.error(logits[i, 0], expected[i][step]) <= reference.TOLERANCE


def test_decode_takes_a_draft_of_several_tokens(exported: Exported) -> None:
    (row,) = rows_of(LENGTH)
    _, past = exported.graphs.run("prefill", row[None, :-5])
    logits, _ = exported.graphs.run("decode", row[None, -5:], past=past)
    assert reference.error(logits[0], reference.logits_of(exported.model, row)[-5:]) <= reference.TOLERANCE


@pytest.mark.parametrize("side", ["left", "right"])
def test_model_is_exact_under_padding(exported: Exported, side: reference.Padding) -> None:
    rows = rows_of(LENGTH, LENGTH - 7, 5)
    ids, mask = reference.padded(rows, side)
    logits, _ = exported.graphs.run("model", ids, mask)
    assert np.isfinite(logits).all()
    for i, row in enumerate(rows):
        expected = reference.logits_of(exported.model, row)
        assert reference.error(logits[i, mask[i] == 1], expected) <= reference.TOLERANCE


@pytest.mark.parametrize("side", ["left", "right"])
def test_model_decodes_after_padding(exported: Exported, side: reference.Padding) -> None:
    """As optimum's generate does; after right padding the gap stays inside the row."""
    rows = rows_of(LENGTH + STEPS, 9 + STEPS)
    expected = [reference.logits_of(exported.model, row) for row in rows]
    ids, mask = reference.padded([row[:-STEPS] for row in rows], side)
    _, past = exported.graphs.run("model", ids, mask)
    for step in range(-STEPS, 0):
        mask = np.concatenate((mask, np.ones((2, 1), np.int64)), axis=1)
        logits, past = exported.graphs.run("model", np.array([[row[step]] for row in rows]), mask, past)
        for i in range(2):
            assert reference.error(logits[i, 0], expected[i][step]) <= reference.TOLERANCE


def test_prefill_gives_each_row_its_last_logits(exported: Exported) -> None:
    rows = rows_of(LENGTH, 1, 33)
    ids, mask = reference.padded(rows, "right")
    logits, _ = exported.graphs.run("prefill", ids, mask)
    assert logits.shape == (3, 1, 320)
    for i, row in enumerate(rows):
        assert reference.error(logits[i], reference.logits_of(exported.model, row)[-1:]) <= reference.TOLERANCE


def test_an_export_with_the_other_rope_is_noticed(exported: Exported, tmp_path: Path) -> None:
    flipped = {"helium": "llama", "llama": "helium"}[exported.graphs.config.model_type]
    checkpoint = shutil.copytree(exported.checkpoint, tmp_path / "checkpoint")
    tiny.edit_json(checkpoint / "config.json", model_type=flipped, architectures=[f"{flipped.capitalize()}ForCausalLM"])
    bundle = helium_onnx.export(checkpoint, tmp_path / "bundle", recipe=exported.recipe)
    (row,) = rows_of(LENGTH)
    expected = reference.logits_of(exported.model, row)
    graphs = reference.Graphs(bundle.path, exported.graphs.config)
    for graph in GRAPHS:
        logits, _ = graphs.run(graph, row[None])
        assert reference.error(logits[0], expected[-logits.shape[1] :]) > reference.MUTATION


@fused_operators
@pytest.mark.parametrize(
    ("graph", "attribute"),
    [("prefill", "rotary_interleaved"), ("decode", "rotary_interleaved"), ("model", "interleaved")],
)
def test_a_flipped_attribute_is_noticed(exported: Exported, graph: Graph, attribute: str, tmp_path: Path) -> None:
    shutil.copytree(exported.bundle / "onnx", tmp_path / "onnx")
    flipped = bundles.flip_attribute(tmp_path / GRAPH_FILES[graph], attribute)
    assert flipped == exported.graphs.config.num_hidden_layers * (2 if graph == "model" else 1)
    (row,) = rows_of(LENGTH)
    logits, _ = reference.Graphs(tmp_path, exported.graphs.config, [graph]).run(graph, row[None])
    expected = reference.logits_of(exported.model, row)
    assert reference.error(logits[0], expected[-logits.shape[1] :]) > reference.MUTATION
