"""Bytes and operations: against sums by hand on a tiny model, against the weights file, and against the graph."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny

import helium_onnx
from helium_onnx.benchmark.graph_weights import readings
from helium_onnx.benchmark.traffic import Traffic
from helium_onnx.bundle import Bundle
from helium_onnx.contract import WEIGHTS_FILE
from helium_onnx.errors import BundleError
from helium_onnx.recipe import GraphSettings, MatrixSettings, Precision, Quantization, Recipe

# tests/tiny.py: vocabulary 320, hidden 64, inner 96, 3 layers, 4 heads of 16, 2 for keys and values.
LAYER = 64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 96 * 64
HEAD = 320 * 64
NORMS = 4 * 64 * (2 * 3 + 1)  # bytes
CACHE = 3 * 2 * 2 * 16  # elements of one token's keys and values
ATTENTION = 3 * 2 * 4 * 16  # multiply-adds of one query with one key, and with its value

#: 4 bits in blocks of 32, the head 8; scales float32, no zero points.
INT4 = Recipe(
    name="test-int4",
    summary="for tests",
    quantization=Quantization(
        method="round-to-nearest",
        linear=MatrixSettings(bits=4, block_size=32),
        head=MatrixSettings(bits=8, block_size=32),
        embedding=MatrixSettings(bits=4, block_size=32),
    ),
)
#: Blocks of 32 in the rows of a layer's matrices: inputs of 64 have two, of 96 (down_proj) three.
LAYER_BLOCKS = 2 * (64 + 32 + 32 + 64 + 96 + 96) + 3 * 64


def bundle(folder: Path, recipe: Recipe | str, **config: object) -> Bundle:
    return helium_onnx.export(tiny.write_checkpoint(folder / "checkpoint", **config), folder / "out", recipe=recipe)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle(tmp_path_factory.mktemp("fp32"), "cpu-fp32")


@pytest.fixture(scope="module")
def int4(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle(tmp_path_factory.mktemp("int4"), INT4)


def test_a_step_in_float32_by_hand(fp32: Bundle) -> None:
    work = Traffic(fp32).decode(past=10, batch=2)
    assert work.weight_bytes == 4 * (3 * LAYER + HEAD) + NORMS
    assert work.embedding_bytes == 2 * 4 * 64 + 2 * 4 * 8  # a row for each token; of cosines and sines one, of 8
    assert work.cache_read_bytes == 2 * 11 * 4 * CACHE
    assert work.cache_write_bytes == 2 * 4 * CACHE
    assert work.fp32_operations == 2 * 2 * (3 * LAYER + HEAD + 11 * ATTENTION)
    assert work.int8_operations == 0
    assert work.total_bytes == (
        work.weight_bytes + work.embedding_bytes + work.cache_read_bytes + work.cache_write_bytes
    )


def test_a_prefill_in_float32_by_hand(fp32: Bundle) -> None:
    work = Traffic(fp32).prefill(5)
    assert work.weight_bytes == 4 * (3 * LAYER + HEAD) + NORMS
    assert work.embedding_bytes == 5 * (4 * 64 + 2 * 4 * 8)
    assert work.cache_read_bytes == work.cache_write_bytes == 5 * 4 * CACHE
    # The head multiplies the last token alone; tokens attend to 1, 2, 3, 4 and 5.
    assert work.fp32_operations == 2 * (5 * 3 * LAYER + HEAD + 15 * ATTENTION)


def test_a_step_in_int4_by_hand(int4: Bundle) -> None:
    work = Traffic(int4).decode(past=0, batch=1)
    linear, head = 3 * LAYER_BLOCKS * (16 + 4), 2 * 320 * (32 + 4)
    assert work.weight_bytes == linear + head + NORMS
    assert work.embedding_bytes == 32 + 2 * 4 + 2 * 4 * 8
    assert work.int8_operations == 2 * (3 * LAYER + HEAD)  # accuracy_level 4
    assert work.fp32_operations == 2 * ATTENTION


def test_all_the_file_is_read_but_embeddings_and_tables(int4: Bundle, fp32: Bundle) -> None:
    for one in (int4, fp32):
        parts = helium_onnx.inspect(one.path)["weights"]["by_part"]
        file = (one.path / WEIGHTS_FILE).stat().st_size
        padding = helium_onnx.inspect(one.path)["weights"]["padding"]
        expected = file - padding - parts["embedding"] - parts["rope tables"]
        assert Traffic(one).decode(past=0, batch=1).weight_bytes == expected


def test_operations_are_those_of_the_nodes(int4: Bundle) -> None:
    """Each MatMulNBits says its K and N."""
    total = 0
    for node in onnx.load(int4.graph_path("decode"), load_external_data=False).graph.node:
        if node.op_type == "MatMulNBits":
            sizes = {attribute.name: attribute.i for attribute in node.attribute}
            total += sizes["K"] * sizes["N"]
    assert Traffic(int4).decode(past=0, batch=1).int8_operations == 2 * total > 0


def test_a_shared_head_is_read_from_the_embedding(tmp_path: Path) -> None:
    alike = dataclasses.replace(INT4.quantization, head=INT4.quantization.embedding)
    tied = bundle(tmp_path, dataclasses.replace(INT4, quantization=alike), tie=True)
    assert not any(tensor.name.startswith("lm_head") for tensor in tied.manifest.tensors)
    work = Traffic(tied).decode(past=0, batch=1)
    assert work.weight_bytes == (3 * LAYER_BLOCKS + 2 * 320) * (16 + 4) + NORMS
    assert work.int8_operations == 2 * (3 * LAYER + HEAD)


def test_kinds_of_arithmetic_and_of_caches(tmp_path: Path) -> None:
    floats = dataclasses.replace(INT4.quantization, accuracy_level=1)
    changed = dataclasses.replace(INT4, quantization=floats, precision=Precision(key_value_cache="float16"))
    traffic = Traffic(bundle(tmp_path / "level", changed))
    work = traffic.decode(past=0, batch=1)
    assert (work.int8_operations, work.fp32_operations) == (0, 2 * (3 * LAYER + HEAD + ATTENTION))
    assert traffic.cache_token_bytes == 2 * CACHE
    portable = Traffic(bundle(tmp_path / "portable", Recipe("p", "for tests", graph=GraphSettings("standard"))))
    assert portable.decode(past=3, batch=2).fp32_operations == 2 * 2 * (3 * LAYER + HEAD + 4 * ATTENTION)
    assert portable.cache_token_bytes == 4 * CACHE


def test_every_size_follows_from_the_config(sample_bundle: Path) -> None:
    """The sample: vocabulary 6000, hidden 256, inner 704, 6 layers, 4 heads of 64, 2 for keys and values."""
    layer = 256 * (256 + 128 + 128 + 256 + 3 * 704)
    work = Traffic(Bundle.open(sample_bundle)).decode(past=99, batch=1)
    assert work.int8_operations == 2 * (6 * layer + 6000 * 256)
    assert work.fp32_operations == 2 * 100 * 6 * 2 * 4 * 64
    assert work.cache_read_bytes == 100 * 6 * 2 * 2 * 64 * 4


def test_readings_are_the_graphs(int4: Bundle) -> None:
    found = readings(int4, "decode")
    graph = onnx.load(int4.graph_path("decode"), load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer if tensor.external_data}
    expected = [
        (node.op_type, tuple(name for name in node.input if name in stored))
        for node in graph.node
        if stored & set(node.input)
    ]
    assert [(r.operator, tuple(tensor.name for tensor in r.tensors)) for r in found] == expected
    assert [reading.operator for reading in found if reading.gathers] == ["GatherBlockQuantized"]


def test_native_graphs_do_the_same_with_keys_and_values_of_their_own(int4: Bundle) -> None:
    ours, native = Traffic(int4), Traffic(int4, native=True)
    inputs = int4.manifest.graphs["native_decode"].inputs
    (dtype,) = {np.dtype(spec.dtype) for spec in inputs if spec.name.startswith("past_key_values.")}
    assert native.cache_token_bytes == dtype.itemsize * CACHE
    for one, two in (
        (ours.decode(past=7, batch=3), native.decode(past=7, batch=3)),
        (ours.prefill(9), native.prefill(9)),
    ):
        nothing = {"cache_read_bytes": 0, "cache_write_bytes": 0}
        assert dataclasses.replace(one, **nothing) == dataclasses.replace(two, **nothing)


def test_a_bundle_without_native_graphs(fp32: Bundle) -> None:
    with pytest.raises(BundleError, match="no graph 'native_decode'"):
        Traffic(fp32, native=True)


@pytest.mark.parametrize(
    ("key", "value", "words"), [("location", "other.data", "'other.data'"), ("offset", "12345", "byte 12345")]
)
def test_a_graph_that_reads_elsewhere_is_refused(
    key: str, value: str, words: str, int4: Bundle, tmp_path: Path
) -> None:
    model = onnx.load(int4.graph_path("decode"), load_external_data=False)
    entry = next(entry for entry in model.graph.initializer[0].external_data if entry.key == key)
    entry.value = value
    (tmp_path / "onnx").mkdir()
    onnx.save(model, tmp_path / "onnx" / "decode.onnx")
    with pytest.raises(BundleError, match=words):
        readings(Bundle(tmp_path, int4.manifest), "decode")


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, b"no protobuf at all"])
def test_a_file_that_is_no_graph_is_refused(data: bytes, int4: Bundle, tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "decode.onnx").write_bytes(data)
    if data:
        with pytest.raises(BundleError, match="reads cannot be told"):
            readings(Bundle(tmp_path, int4.manifest), "decode")
    else:
        assert readings(Bundle(tmp_path, int4.manifest), "decode") == ()


def test_no_file_is_refused(int4: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        readings(Bundle(tmp_path, int4.manifest), "prefill")
