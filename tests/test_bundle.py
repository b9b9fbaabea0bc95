"""Reading a bundle: what is found before anything is run."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import bundles
import pytest

from helium_onnx.bundle import Bundle
from helium_onnx.contract import WEIGHTS_FILE
from helium_onnx.errors import BundleError, FormatVersionError, IntegrityError
from helium_onnx.manifest import _digest


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return bundles.write_bundle(tmp_path / "bundle", "old").path


def test_what_was_written_is_read(target: Path) -> None:
    before = bundles.snapshot(target)
    bundle = Bundle.open(str(target))
    assert bundle.task == "text-generation"
    assert bundle.model_config == bundles.CONFIG
    assert bundle.graph_path("decode") == target / "onnx/decode.onnx"
    assert bundle.total_bytes == sum(len(data) for data in bundles.contents().values())
    assert tuple(file.path for file in bundle.manifest.files) == bundles.FILES
    assert bundle.digest == json.loads((target / "helium.json").read_text())["manifest_sha256"]
    seen: list[tuple[str, int, int]] = []
    bundle.check_digests(lambda *step: seen.append(step))
    assert [name for name, _, _ in seen] == list(bundles.FILES)
    assert seen[-1][1:] == (bundle.total_bytes, bundle.total_bytes)
    assert bundles.snapshot(target) == before


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    first, second, other = (bundles.write_bundle(tmp_path / name, name[0]) for name in ("a1", "a2", "b"))
    assert first.digest == second.digest != other.digest
    assert (first.path / "helium.json").read_bytes() == (second.path / "helium.json").read_bytes()


def test_unknown_graph(target: Path) -> None:
    with pytest.raises(BundleError, match="decode, model, prefill"):
        Bundle.open(target).graph_path("encode")


@pytest.mark.parametrize("name", bundles.FILES)
@pytest.mark.parametrize("place", [0, -1])
def test_flipped_bit(name: str, place: int, target: Path) -> None:
    data = bytearray((target / name).read_bytes())
    data[place] ^= 1
    (target / name).write_bytes(data)
    bundle = Bundle.open(target)  # sizes are right
    with pytest.raises(IntegrityError) as caught:
        bundle.check_digests()
    assert name in str(caught.value)
    assert not any(other in str(caught.value) for other in bundles.FILES if other not in name)


def test_flipped_bit_in_the_manifest(target: Path) -> None:
    raw = (target / "helium.json").read_bytes()
    rng = random.Random(1)
    for _ in range(100):
        place = rng.choice([i for i, byte in enumerate(raw) if chr(byte).isalnum()])
        (target / "helium.json").write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        with pytest.raises(BundleError):
            Bundle.open(target)


def test_all_bad_files_are_named(target: Path) -> None:
    for name in ("tokenizer.json", WEIGHTS_FILE):
        with (target / name).open("r+b") as file:
            file.write(b"other")
    with pytest.raises(IntegrityError) as caught:
        Bundle.open(target).check_digests()
    assert "tokenizer.json" in str(caught.value)
    assert WEIGHTS_FILE in str(caught.value)


@pytest.mark.parametrize("name", bundles.FILES)
def test_missing_file(name: str, target: Path) -> None:
    bundle = Bundle.open(target)
    (target / name).unlink()
    with pytest.raises(IntegrityError, match=f"{name} is missing"):
        Bundle.open(target)
    with pytest.raises(IntegrityError, match=f"{name} is missing"):
        bundle.check_digests()


@pytest.mark.parametrize("change", [b"x", None], ids=["longer", "empty"])
@pytest.mark.parametrize("name", bundles.FILES)
def test_other_size(name: str, change: bytes | None, target: Path) -> None:
    data = (target / name).read_bytes() + change if change else b""
    (target / name).write_bytes(data)
    with pytest.raises(IntegrityError, match=f"{name} has {len(data)} bytes"):
        Bundle.open(target)


def test_truncated_manifest(target: Path) -> None:
    text = (target / "helium.json").read_text()
    for length in (0, 1, len(text) // 2, len(text) - 3):
        (target / "helium.json").write_text(text[:length])
        with pytest.raises(IntegrityError):
            Bundle.open(target)


def test_manifest_that_is_no_text(target: Path) -> None:
    (target / "helium.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(IntegrityError, match="utf-8"):
        Bundle.open(target)


def test_newer_format(target: Path) -> None:
    (target / "helium.json").write_text('{"format_version": 7}')
    with pytest.raises(FormatVersionError, match="format_version 7"):
        Bundle.open(target)


@pytest.mark.parametrize("name", ["config.json", "onnx/model.onnx_data", "helium.json"])
def test_link_out_of_the_folder(name: str, target: Path, tmp_path: Path) -> None:
    shutil.move(target / name, tmp_path / "outside")
    (target / name).symlink_to(tmp_path / "outside")
    with pytest.raises(IntegrityError, match=f"{name} is a link out of the folder"):
        Bundle.open(target)


def test_linked_folder_inside(target: Path, tmp_path: Path) -> None:
    shutil.move(target / "onnx", tmp_path / "elsewhere")
    (target / "onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="link out"):
        Bundle.open(target)


@pytest.mark.usefixtures("target")
def test_a_link_to_the_bundle_itself_is_fine(tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to("bundle")
    Bundle.open(tmp_path / "latest").check_digests()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to(path.name)])
def test_no_regular_file(make: Callable[[Path], object], target: Path) -> None:
    (target / "config.json").unlink()
    make(target / "config.json")
    with pytest.raises(BundleError):
        Bundle.open(target)


def test_path_traversal(target: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    data = json.loads((target / "helium.json").read_text())
    del data["manifest_sha256"]
    data["files"][0] = {**data["files"][0], "path": "../secret", "size": 6}
    (target / "helium.json").write_text(json.dumps({**data, "manifest_sha256": _digest(data)}))
    with pytest.raises(BundleError, match="plain path inside"):
        Bundle.open(target)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["model.safetensors", "config.json"], "checkpoint.*\n.*\n.*helium-onnx export"),
        (["model.safetensors.index.json"], "checkpoint"),
        (["onnx/model.onnx"], "another exporter"),
        (["model.onnx"], "another exporter"),
        (["a/helium.json", "b/helium.json"], "bundles in it: a, b"),
        (["notes.txt"], "notes.txt"),
        ([], "an empty folder"),
    ],
)
def test_what_is_no_bundle(files: list[str], said: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    with pytest.raises(BundleError, match=said):
        Bundle.open(folder)


def test_paths_that_are_no_folder(target: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="There is no folder"):
        Bundle.open(tmp_path / "nothing")
    with pytest.raises(BundleError, match="not a folder"):
        Bundle.open(target / "helium.json")
    with pytest.raises(BundleError, match="inside a bundle"):
        Bundle.open(target / "onnx")
    for path in (target / "helium.json" / "x", "a\0b", "x" * 5000):
        with pytest.raises(BundleError):
            Bundle.open(path)
