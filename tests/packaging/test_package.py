"""What packaging refuses, before it works and in the midst of it: targets, options, places, bundles."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.errors import (
    BundleError,
    HeliumOnnxError,
    IntegrityError,
    ProviderError,
    TargetExistsError,
    UsageError,
)
from helium_onnx.packaging import TARGETS, android_qnn
from helium_onnx.recipe import list_recipes
from helium_onnx.runtimes import plugins


def refused(kind: type[HeliumOnnxError], *args: Any, **options: Any) -> HeliumOnnxError:
    with pytest.raises(HeliumOnnxError) as caught:
        helium_onnx.package(*args, **options)
    assert type(caught.value) is kind, caught.value
    return caught.value


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the compiler is there is not the question of these tests."""
    monkeypatch.setattr(plugins, "find_spec", lambda _name: object())


def test_the_targets_have_recipes_that_there_are() -> None:
    names = {recipe.name for recipe in list_recipes()}
    for name, row in TARGETS.items():
        assert row.name == name
        assert row.recipes and set(row.recipes) <= names


def test_an_unknown_target(tmp_path: Path, sample_bundle_fp32: Path) -> None:
    error = refused(UsageError, sample_bundle_fp32, tmp_path / "p", target="andriod")
    assert (error.found, error.expected) == ("'andriod'", "one of android-qnn, web, optimum, desktop, android, ios")


@pytest.mark.parametrize(
    ("options", "found"), [({"soc": "75/57"}, "--soc 75/57"), ({"share_weights": False}, "--unshared")]
)
def test_an_option_that_the_target_has_not(
    options: dict[str, Any], found: str, tmp_path: Path, sample_bundle_fp32: Path
) -> None:
    error = refused(UsageError, sample_bundle_fp32, tmp_path / "p", target="web", **options)
    assert error.found == found
    assert "android-qnn" in str(error.remedy)


@pytest.mark.parametrize("soc", [None, "75/58", "57", "snapdragon", ""])
def test_a_chip_that_is_not_known(soc: str | None, tmp_path: Path, qnn_bundle: Bundle) -> None:
    error = refused(UsageError, qnn_bundle.path, tmp_path / "p", target="android-qnn", soc=soc)
    for known in ("73/43 (Snapdragon 8 Gen 2, SM8550)", "75/57 (Snapdragon 8 Gen 3, SM8650)", "79/69", "81/87"):
        assert known in str(error.expected)
    assert list(tmp_path.iterdir()) == []


def test_a_chip_by_its_name() -> None:
    assert {android_qnn.soc_of(name).name for name in ("75/57", "SM8650", " sm8650 ")} == {"75/57"}


@pytest.mark.parametrize("place", ["", "inside", "inside/deeper", ".."])
@pytest.mark.parametrize("force", [False, True])
def test_a_place_in_or_around_the_bundle(place: str, force: bool, tmp_path: Path, sample_bundle_fp32: Path) -> None:
    """With --force too: that would replace the bundle while it is read."""
    bundle = Path(shutil.copytree(sample_bundle_fp32, tmp_path / "a" / "bundle"))
    before = sorted(tmp_path.rglob("*"))
    refused(UsageError, bundle, bundle / place, target="web", force=force)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_to_the_bundle_is_the_bundle(tmp_path: Path, sample_bundle_fp32: Path) -> None:
    bundle = Path(shutil.copytree(sample_bundle_fp32, tmp_path / "bundle"))
    (tmp_path / "link").symlink_to(bundle)
    refused(UsageError, bundle, tmp_path / "link", target="web", force=True)


def test_a_place_that_is_taken(tmp_path: Path, sample_bundle_fp32: Path, export_sample: Callable[[str], Path]) -> None:
    dest, other = tmp_path / "p", export_sample("portable-fp32")
    helium_onnx.package(sample_bundle_fp32, dest, target="web")
    refused(TargetExistsError, other, dest, target="web")
    made = helium_onnx.package(other, dest, target="web", force=True)
    assert Bundle.open(dest).manifest.recipe["name"] == made.manifest.recipe["name"] == "portable-fp32"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    refused(TargetExistsError, sample_bundle_fp32, tmp_path / "mine", target="web", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "p"]


def test_a_package_of_a_package(tmp_path: Path, sample_bundle_fp32: Path) -> None:
    helium_onnx.package(sample_bundle_fp32, tmp_path / "p", target="web")
    error = refused(BundleError, tmp_path / "p", tmp_path / "q", target="web")
    assert "one for web" in str(error.found)


@pytest.mark.parametrize(
    ("recipe", "target", "found", "remedy"),
    [
        ("cpu-fp32", "android-qnn", "recipe cpu-fp32: it is for the execution provider cpu", "--recipe qnn-int4"),
        ("cuda-fp16", "android-qnn", "recipe cuda-fp16: it is for the execution provider cuda", "--recipe qnn-int4"),
        ("cuda-fp16", "web", "recipe cuda-fp16: its graphs are for cuda", "--recipe cpu-int4"),
        ("qnn-fp16", "web", "recipe qnn-fp16: its graphs are for qnn", "--recipe cpu-int4"),
        ("cuda-fp16", "optimum", "recipe cuda-fp16: its graphs are for cuda", "--recipe cpu-int4"),
    ],
)
def test_a_form_that_the_target_cannot_take(
    recipe: str, target: str, found: str, remedy: str, tmp_path: Path, export_sample: Callable[[str], Path]
) -> None:
    options = {"soc": "75/57"} if target == "android-qnn" else {}
    error = refused(ProviderError, export_sample(recipe), tmp_path / "p", target=target, **options)
    assert error.found == found
    assert remedy in str(error.remedy)
    assert list(tmp_path.iterdir()) == []


def test_no_bundle(tmp_path: Path) -> None:
    refused(BundleError, tmp_path / "none", tmp_path / "p", target="web")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_bundle(tmp_path: Path, sample_bundle_fp32: Path) -> None:
    bundle = Path(shutil.copytree(sample_bundle_fp32, tmp_path / "bundle"))
    weights = bundle / "onnx" / "model.onnx_data"
    data = bytearray(weights.read_bytes())
    data[1000] ^= 1
    weights.write_bytes(data)
    refused(IntegrityError, bundle, tmp_path / "p", target="web")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_without_the_compiler(tmp_path: Path, qnn_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "find_spec", lambda _name: None)
    error = refused(ProviderError, qnn_bundle.path, tmp_path / "p", target="android-qnn", soc="75/57")
    assert error.remedy == "pip install --no-deps onnxruntime-qnn==2.7.0"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("installed")
def test_shared_weights_on_another_processor(
    tmp_path: Path, qnn_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(android_qnn, "on_x86", lambda: False)
    error = refused(ProviderError, qnn_bundle.path, tmp_path / "p", target="android-qnn", soc="75/57")
    assert "--unshared" in str(error.remedy)


def test_a_compiler_that_does_not_load(tmp_path: Path, qnn_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found, and its library is another file: the other process says so."""
    folder = tmp_path / "broken" / "onnxruntime_qnn"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("def get_library_path():\n    return __file__\n")
    monkeypatch.syspath_prepend(folder.parent)
    error = refused(ProviderError, qnn_bundle.path, tmp_path / "p", target="android-qnn", soc="75/57")
    assert error.what == "the execution provider qnn cannot be loaded"
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]
