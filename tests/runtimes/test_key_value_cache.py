"""Bundles whose keys and values are float16 or int8: exported, verified, run in place, and described as they are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.contract import GRAPH_FILES, WEIGHTS_FILE
from helium_onnx.generation.model import LanguageModel
from helium_onnx.progress import silent
from helium_onnx.recipe import Precision, load_recipe
from helium_onnx.runtimes.key_value_cache import InPlaceCache, InPlacePast
from helium_onnx.runtimes.onnxruntime_session import OnnxRuntimeSession
from helium_onnx.verification import CHECKS, verify_bundle

CACHES = ("float16", "int8")
#: Bytes a token of the tiny model: 3 layers, keys and values, 2 heads of 16.
ELEMENTS = 3 * 2 * 2 * 16


def export(folder: Path, recipe: str, cache: str) -> Bundle:
    precision = Precision(key_value_cache=cache)  # type: ignore[arg-type]
    chosen = load_recipe(recipe)
    quantization = dataclasses.replace(chosen.quantization, calibration_tokens=2048)
    chosen = dataclasses.replace(chosen, precision=precision, quantization=quantization)
    return helium_onnx.export(tiny.write_checkpoint(folder / "checkpoint"), folder / "bundle", recipe=chosen)


@pytest.fixture(
    scope="module", params=[(r, c) for r in ("cpu-fp32", "cpu-int4") for c in CACHES], ids=lambda p: f"{p[0]}-{p[1]}"
)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(tmp_path_factory.mktemp("cache"), *request.param)


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> Iterator[LanguageModel]:
    with helium_onnx.load(bundle.path, kernels="onnxruntime", cache=False) as model:
        yield model


def cache_of(bundle: Bundle) -> str:
    return str(bundle.manifest.recipe["precision"]["key_value_cache"])


def session_of(model: LanguageModel) -> OnnxRuntimeSession:
    assert isinstance(model.session, OnnxRuntimeSession)
    return model.session


def ids(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(4, 320, (1, count))


def test_it_verifies(bundle: Bundle) -> None:
    checks = verify_bundle(bundle.path, progress=silent)
    assert all(check.ok for check in checks), checks[-1].detail
    assert [check.name for check in checks] == [name for name, _ in CHECKS]


def test_the_contract_says_so(bundle: Bundle) -> None:
    for graph in bundle.manifest.graphs.values():
        kinds = {spec.name.split(".")[0]: spec.dtype for spec in (*graph.inputs, *graph.outputs)}
        assert kinds["past_key_values"] == kinds["present"] == cache_of(bundle)
        assert kinds["logits"] == "float32"


def test_inspect_shows_it(bundle: Bundle) -> None:
    info = helium_onnx.inspect(bundle.path)
    for graph in info["graphs"].values():
        assert sum(text.endswith(f" {cache_of(bundle)}") for text in (*graph["inputs"], *graph["outputs"])) == 4
    assert info["weights"]["padding"] >= 0


def test_buffers_are_of_its_size(bundle: Bundle, model: LanguageModel) -> None:
    session = session_of(model)
    past = session.new_past(2)
    assert isinstance(past, InPlacePast)
    size = np.dtype(cache_of(bundle)).itemsize
    assert {buffer.dtype.name for buffer in past.buffers} == {cache_of(bundle)}
    assert sum(buffer.nbytes for buffer in past.buffers) == 2 * 256 * ELEMENTS * size
    float32 = InPlaceCache(
        tuple(dataclasses.replace(spec, dtype="float32") for spec in session._past_specs), session.context_length
    )
    assert sum(buffer.nbytes for buffer in float32.buffers(2)) == 2 * 256 * ELEMENTS * 4


def test_the_past_stays_in_place(model: LanguageModel) -> None:
    session = session_of(model)
    past = session.new_past(3)
    assert isinstance(past, InPlacePast)
    addresses = [buffer.ctypes.data for buffer in past.buffers]
    for buffer in past.buffers:
        buffer[:] = 7
    row = past.row(1)
    session.run("prefill", ids(10), row)
    session.run("decode", ids(1), row)
    assert past.lengths.tolist() == [0, 11, 0]
    assert [buffer.ctypes.data for buffer in past.buffers] == addresses
    for buffer in past.buffers:
        assert (buffer[[0, 2]] == 7).all()
        assert (buffer[1, :, 11:] == 7).all()
        assert (buffer[1, :, :11] != 7).any(axis=2).all()


@pytest.mark.parametrize("chunk", [7, 64])
def test_a_prefill_in_chunks_equals_one_in_one_go(
    bundle: Bundle, model: LanguageModel, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    session = session_of(model)
    whole = session.run("prefill", ids(100), session.new_past(1)).copy()
    monkeypatch.setattr(session, "provider", dataclasses.replace(session.provider, prefill_chunk=chunk))
    pieces = session.run("prefill", ids(100), session.new_past(1))
    # A last bit that tips a rounding to the next half or code: see tests/exporter/test_key_value_cache_parity.py.
    tolerance = {"float16": 4 * 2**-11, "int8": 1 / 127 / 64**0.5}[cache_of(bundle)]
    assert float(np.abs(pieces - whole).max() / np.abs(whole).max()) <= tolerance


def test_a_length_that_is_set_back_forgets(model: LanguageModel) -> None:
    session = session_of(model)
    past = session.new_past(1)
    session.run("prefill", ids(20), past)
    first = session.run("decode", ids(1), past).copy()
    for count in (2, 3):
        session.run("decode", ids(count), past)
    past.lengths[:] = 20
    np.testing.assert_array_equal(session.run("decode", ids(1), past), first)


def test_prepacked_weights_give_the_same_text(bundle: Bundle, model: LanguageModel, tmp_path: Path) -> None:
    prompts = ["Once upon a time", "the table"]
    expected = [row.token_ids for row in model.generate(prompts, max_new_tokens=20, ignore_eos=True)]
    for _ in range(2):  # made, and read back
        with helium_onnx.load(bundle.path, kernels="onnxruntime", cache=True, cache_dir=tmp_path) as packed:
            found = [row.token_ids for row in packed.generate(prompts, max_new_tokens=20, ignore_eos=True)]
        assert found == expected


def test_every_weight_is_where_the_manifest_says(bundle: Bundle) -> None:
    records = {(record.offset, record.nbytes): record for record in bundle.manifest.tensors}
    read = set()
    for file in GRAPH_FILES.values():
        for tensor in onnx.load(bundle.path / file, load_external_data=False).graph.initializer:
            where = {entry.key: entry.value for entry in tensor.external_data}
            assert (bundle.path / "onnx" / where["location"]) == bundle.path / WEIGHTS_FILE
            place = (int(where["offset"]), int(where["length"]))
            assert onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).name == records[place].dtype
            read.add(place)
    assert read == set(records)
    named = {record.name: record for record in bundle.manifest.tensors}
    assert named["cos"].dtype == ("float16" if cache_of(bundle) == "float16" else "float32")
    scales = [record for name, record in named.items() if name.endswith("_cache.scales")]
    assert [(r.shape, r.source) for r in scales] == [((1, 2, 1, 16), "calibration")] * (
        6 if cache_of(bundle) == "int8" else 0
    )


def test_other_clients_are_told(bundle: Bundle) -> None:
    config = json.loads((bundle.path / "config.json").read_text())
    assert config["transformers.js_config"]["kv_cache_dtype"] == cache_of(bundle)
    genai = json.loads((bundle.path / "genai_config.json").read_text())
    assert genai["search"]["past_present_share_buffer"] is True
