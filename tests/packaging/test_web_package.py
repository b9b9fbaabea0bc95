"""Packages for the browser: what @helium-onnx/web asks for, and no more; what cannot run there is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.errors import BundleError, ResourceError
from helium_onnx.packaging import web

SOURCES = Path(__file__).parents[2] / "runtimes" / "web" / "src"


@pytest.fixture(scope="module", params=["cpu-fp32", "cpu-int4-fast", "portable-fp32"])
def source(request: pytest.FixtureRequest, export_sample: Callable[[str], Path]) -> Bundle:
    return Bundle.open(export_sample(request.param))


@pytest.fixture
def package(source: Bundle, tmp_path: Path) -> Bundle:
    return helium_onnx.package(source.path, tmp_path / "package", target="web")


def test_what_is_in_the_folder(source: Bundle, package: Bundle) -> None:
    names = [
        "config.json", "generation_config.json", "onnx/model.onnx_data", "onnx/prefill.onnx", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    before = {file.path: file for file in source.manifest.files}
    assert list(package.manifest.files) == [before[name] for name in names]
    on_disk = sorted(path.relative_to(package.path).as_posix() for path in package.path.rglob("*") if path.is_file())
    assert on_disk == sorted([*names, "helium.json"])
    package.check_digests()


def test_the_manifest_is_true(source: Bundle, package: Bundle) -> None:
    here, there = package.manifest, source.manifest
    assert here.package == {"target": "web", "bundle": source.digest, "longest_context": 2048}
    assert here.graphs == {"prefill": there.graphs["prefill"]}
    assert (here.tensors, here.recipe, here.model_config) == (there.tensors, there.recipe, there.model_config)
    assert Bundle.open(package.path).digest == package.digest != source.digest
    assert '"package"' not in (source.path / "helium.json").read_text()
    assert all(check.ok for check in helium_onnx.verify(package.path))


def test_the_graph_runs_over_the_weights_beside_it(source: Bundle, package: Bundle) -> None:
    """Prompt and steps by the one graph, as the browser does, give what the whole bundle gives in Python."""
    record = package.manifest.graphs["prefill"]
    graph = ort.InferenceSession(package.graph_path("prefill"), providers=["CPUExecutionProvider"])
    with contextlib.closing(helium_onnx.load(source.path, kernels="onnxruntime", cache=False)) as model:
        (expected,) = model.generate("To insert a table", max_new_tokens=12, temperature=0)
        ids = list(model.tokenizer.encode("To insert a table"))
    past = {
        spec.name: np.zeros((1, int(spec.dims[1]), 0, int(spec.dims[3])), spec.dtype)
        for spec in record.inputs
        if spec.name.startswith("past_key_values.")
    }
    new, tokens, length = ids, [], 0
    for _ in range(12):
        length += len(new)
        feed = {"input_ids": np.array([new]), "attention_mask": np.ones((1, length), np.int64), **past}
        logits, *present = graph.run(["logits", *(name.replace("past_key_values", "present") for name in past)], feed)
        past = dict(zip(past, present, strict=True))
        new = [int(logits[0, -1].argmax())]
        tokens += new
    assert tuple(tokens) == expected.token_ids


def test_it_is_not_for_python(package: Bundle) -> None:
    with pytest.raises(BundleError, match=r"found: +no graph decode, in a package for web\n"):
        helium_onnx.load(package.path)


def test_weights_that_leave_no_room(export_sample: Callable[[str], Path], tmp_path: Path) -> None:
    """As of the 2 B model in float32, which has 8.7 GB: here the browser is made small instead."""
    path = export_sample("cpu-fp32")
    weights = (path / "onnx" / "model.onnx_data").stat().st_size
    token = 2 * 6 * 2 * 64 * 4  # keys and values of 6 layers, 2 heads of 64, in float32
    with pytest.MonkeyPatch.context() as patch:
        for room, longest in ((weights + 100 * token + 1, 100), (weights + 100 * token, 99), (2**32, 2048)):
            patch.setattr(web, "WASM_LIMIT_BYTES", room)
            assert web.longest_context(Bundle.open(path)) == longest
        patch.setattr(web, "WASM_LIMIT_BYTES", weights)
        with pytest.raises(ResourceError, match="too large for a browser") as caught:
            helium_onnx.package(path, tmp_path / "p", target="web")
        assert "cpu-int4" in str(caught.value.remedy)
    assert list(tmp_path.iterdir()) == []


def test_numbers_and_types_are_those_of_the_browsers_package() -> None:
    """Read in its sources, which refuse by the same rules."""
    (limit,) = re.findall(r"WASM_LIMIT_BYTES = 2 \*\* (\d+);", (SOURCES / "engine.ts").read_text())
    assert 2 ** int(limit) == web.WASM_LIMIT_BYTES
    (types,) = re.findall(r"const TYPES: .* = \{ (.*) \};", (SOURCES / "wasm-engine.ts").read_text())
    assert set(web._CACHE_TYPES) < set(re.findall(r"(\w+): \[", types))
    assert f'export const GRAPH = "{web._GRAPH}";' in (SOURCES / "bundle.ts").read_text()


def test_a_cache_that_the_browser_has_no_type_for(export_sample: Callable[[str], Path]) -> None:
    bundle = Bundle.open(export_sample("cpu-fp32"))
    graph = bundle.manifest.graphs["prefill"]
    coded = tuple(
        dataclasses.replace(spec, dtype="int8") if spec.name.startswith("past") else spec for spec in graph.inputs
    )
    changed = dataclasses.replace(
        bundle.manifest, graphs={**bundle.manifest.graphs, "prefill": dataclasses.replace(graph, inputs=coded)}
    )
    assert web.refusal(bundle) is None
    assert web.refusal(Bundle(bundle.path, changed)) == "it keeps keys and values in int8"
