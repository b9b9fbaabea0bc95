"""Packages for optimum: one graph where its ORTModel classes look, and nothing that they have no use for.

tests/interop/test_optimum_register.py loads one in optimum itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import tiny
from command_line import run

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.contract import WEIGHTS_FILE
from helium_onnx.errors import BundleError


@pytest.fixture(scope="module", params=["cpu-fp32", "cpu-int4-fast", "portable-fp32"])
def source(request: pytest.FixtureRequest, export_sample: Callable[[str], Path]) -> Bundle:
    return Bundle.open(export_sample(request.param))


@pytest.fixture
def package(source: Bundle, tmp_path: Path) -> Bundle:
    return helium_onnx.package(source.path, tmp_path / "package", target="optimum")


def test_what_is_in_the_folder(source: Bundle, package: Bundle) -> None:
    names = [
        "config.json", "generation_config.json", "onnx/model.onnx", WEIGHTS_FILE, "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    before = {file.path: file for file in source.manifest.files}
    assert list(package.manifest.files) == [before[name] for name in names]
    on_disk = sorted(path.relative_to(package.path).as_posix() for path in package.path.rglob("*") if path.is_file())
    assert on_disk == sorted([*names, "helium.json"])
    package.check_digests()


def test_the_manifest_is_true(source: Bundle, package: Bundle) -> None:
    here, there = package.manifest, source.manifest
    assert here.package == {"target": "optimum", "bundle": source.digest, "class": "ORTModelForCausalLM"}
    assert here.graphs == {"model": there.graphs["model"]}
    assert (here.tensors, here.recipe, here.model_config) == (there.tensors, there.recipe, there.model_config)
    checks = helium_onnx.verify(package.path)
    assert all(check.ok for check in checks), checks
    assert any("model.onnx loads" in check.detail for check in checks)
    assert helium_onnx.inspect(package.path)


def test_the_graph_gives_the_same_logits(source: Bundle, package: Bundle) -> None:
    ids = np.random.default_rng(0).integers(4, 6000, (1, 40))
    found = []
    for bundle in (source, package):
        graph = ort.InferenceSession(bundle.graph_path("model"), providers=["CPUExecutionProvider"])
        past = {
            value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
            for value in graph.get_inputs()
            if value.name.startswith("past_key_values.")
        }
        found.append(graph.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids), **past})[0])
    assert np.isfinite(found[0]).all()
    np.testing.assert_array_equal(*found)


def test_it_is_not_for_our_runtime(package: Bundle) -> None:
    with pytest.raises(BundleError, match=r"found: +no graph decode and prefill, in a package for optimum\n"):
        helium_onnx.load(package.path)


def test_the_command_names_the_class(sample_bundle_fp32: Path, tmp_path: Path) -> None:
    done = run("package", sample_bundle_fp32, tmp_path / "p", "--for", "optimum", "-q")
    assert (done.returncode, done.stderr) == (0, b"")
    assert f'Next: ORTModelForCausalLM.from_pretrained("{tmp_path / "p"}")' in done.stdout.decode()


def test_a_bundle_of_another_task(tmp_path: Path) -> None:
    """What embeds has one graph only, which is the package's."""
    checkpoint = tiny.write_checkpoint(tmp_path / "checkpoint")
    bundle = helium_onnx.export(checkpoint, tmp_path / "bundle", recipe="cpu-fp32", task="feature-extraction")
    package = helium_onnx.package(bundle.path, tmp_path / "package", target="optimum")
    assert package.manifest.package["class"] == "ORTModelForFeatureExtraction"
    assert list(package.manifest.graphs) == ["model"]
    checks = helium_onnx.verify(package.path)
    assert all(check.ok for check in checks), checks
    assert any("model.onnx loads" in check.detail for check in checks)
