"""Packages for desktop, Android and iOS: projects of an app, with a bundle in them that runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.errors import BundleError, HeliumOnnxError, ProviderError, TargetExistsError, UsageError
from helium_onnx.packaging import app_sources
from helium_onnx.packaging.apps import APPS

PROMPT = "To insert a table"


@pytest.mark.parametrize("target", list(APPS))
def test_the_bundle_in_it_runs(target: str, sample_bundle: Path, tmp_path: Path) -> None:
    made = helium_onnx.package(sample_bundle, tmp_path / "app", target=target)
    assert made.path == tmp_path / "app" / "model"
    assert all(check.ok for check in helium_onnx.verify(made.path))
    source = Bundle.open(sample_bundle)
    assert set(made.manifest.graphs) == set(APPS[target].graphs) & set(source.manifest.graphs)
    assert made.manifest.package == {"target": target, "bundle": source.digest}
    record = json.loads((tmp_path / "app/helium-package.json").read_text())
    assert (record["target"], record["model"]) == (target, made.digest)
    page = (tmp_path / "app/PACKAGE.md").read_text()
    assert made.digest in page and max(map(len, page.splitlines())) <= 120
    here, there = (helium_onnx.load(path, kernels="onnxruntime") for path in (made.path, sample_bundle))
    assert here.generate(PROMPT, max_new_tokens=8).text == there.generate(PROMPT, max_new_tokens=8).text
    here.close()
    there.close()


@pytest.mark.parametrize(
    ("target", "files"),
    [
        ("desktop", ["CMakeLists.txt", "include/helium_onnx.h", "src/api.cpp", "kernels/avx2.cpp", "samples/helium.c"]),
        ("android", ["settings.gradle.kts", "helium/src/main/cpp/helium_jni.cpp", "c/src/api.cpp", "c/CMakeLists.txt"]),
        ("ios", ["Package.swift", "Sources/CHeliumOnnx/src/api.cpp", "Sources/CHeliumOnnx/include/helium_onnx.h"]),
    ],
)
def test_the_sources_are_there_and_nothing_that_was_built(
    target: str, files: list[str], sample_bundle_fp32: Path, tmp_path: Path
) -> None:
    helium_onnx.package(sample_bundle_fp32, tmp_path / "app", target=target)
    for file in [*files, "README.md"]:
        assert (tmp_path / "app" / file).is_file(), file
    everything = [path for path in (tmp_path / "app").rglob("*") if "model" not in path.parts]
    assert not [path for path in everything if path.is_symlink() or path.suffix in (".so", ".o", ".log")]
    assert sum(path.stat().st_size for path in everything if path.is_file()) < 2_000_000
    # Of every source that CMake and Swift name: a new file of the library comes along by itself.
    cmake = (app_sources.folder("c") / "CMakeLists.txt").read_text()
    names = re.search(r"set\(core_names ([^)]*)\)", cmake)
    assert names is not None
    place = {"desktop": "src", "android": "c/src", "ios": "Sources/CHeliumOnnx/src"}[target]
    for name in names[1].split():
        assert (tmp_path / "app" / place / f"{name}.cpp").is_file(), name


def test_what_is_replaced(sample_bundle: Path, tmp_path: Path) -> None:
    dest = tmp_path / "app"
    helium_onnx.package(sample_bundle, dest, target="desktop")
    with pytest.raises(TargetExistsError):
        helium_onnx.package(sample_bundle, dest, target="desktop")
    (dest / "mine").touch()
    helium_onnx.package(sample_bundle, dest, target="android", force=True)
    assert (dest / "settings.gradle.kts").is_file() and not (dest / "mine").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine").touch()
    with pytest.raises(TargetExistsError, match="is no package for an app"):
        helium_onnx.package(sample_bundle, other, target="desktop", force=True)
    assert (other / "mine").exists()
    with pytest.raises(BundleError, match="is a package already"):
        helium_onnx.package(dest / "model", tmp_path / "again", target="desktop")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app", "other"]


@pytest.mark.parametrize("recipe", ["portable-fp32", "qnn-fp16"])
def test_bundles_that_the_library_does_not_run(
    recipe: str, export_sample: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(ProviderError, match="cannot be packaged for desktop"):
        helium_onnx.package(export_sample(recipe), tmp_path / "app", target="desktop")
    assert not list(tmp_path.iterdir())


def test_options_of_other_targets(sample_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no --soc"):
        helium_onnx.package(sample_bundle, tmp_path / "app", target="ios", soc="75/57")


def test_an_interrupted_package_leaves_nothing(sample_bundle: Path, tmp_path: Path) -> None:
    def interrupt(event: helium_onnx.ProgressEvent) -> None:
        if event.stage == "copy" and event.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        helium_onnx.package(sample_bundle, tmp_path / "app", target="desktop", progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_damaged_bundle_is_not_packaged(sample_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(sample_bundle, copy)
    with (copy / "onnx/model.onnx_data").open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    with pytest.raises(HeliumOnnxError, match="damaged"):
        helium_onnx.package(copy, tmp_path / "app", target="desktop")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
