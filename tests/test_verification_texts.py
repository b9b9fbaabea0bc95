"""verify of a task without generation: what fails is named, and nothing after it is tried."""

from __future__ import annotations

import ctypes
import dataclasses
from pathlib import Path

import bundles
import onnx
import pytest
import reference
import task_models

import helium_onnx
from helium_onnx.contract import WEIGHTS_FILE
from helium_onnx.manifest import Manifest


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    model = task_models.make_model("token-classification", "helium")
    return helium_onnx.export(reference.save(model, folder / "checkpoint"), folder / "out", recipe="cpu-int8").path


def failed(path: Path, name: str) -> str:
    checks = helium_onnx.verify(path)
    assert [check.name for check in checks if not check.ok] == [name]
    assert checks[-1].name == name
    return checks[-1].detail


def test_whole(bundle: Path, native_kernels: ctypes.CDLL) -> None:  # noqa: ARG001
    checks = {check.name: check for check in helium_onnx.verify(bundle)}
    assert list(checks) == ["manifest", "files", "tokenizer", "model", "padding", "native"]
    assert all(check.ok for check in checks.values())
    assert "[16, 4] is finite" in checks["model"].detail
    assert "right" in checks["padding"].detail and "left" in checks["padding"].detail


def test_a_flipped_bit(bundle: Path, tmp_path: Path) -> None:
    copied = bundles.forge(bundle, tmp_path / "b")
    data = bytearray((copied / WEIGHTS_FILE).read_bytes())
    data[4096] ^= 1
    (copied / WEIGHTS_FILE).write_bytes(data)
    assert WEIGHTS_FILE in failed(copied, "files")


def test_a_missing_file(bundle: Path, tmp_path: Path) -> None:
    copied = bundles.forge(bundle, tmp_path / "b")
    (copied / "onnx/model.onnx").unlink()
    assert "missing" in failed(copied, "files")


@pytest.mark.parametrize("task", ["text-generation", "feature-extraction", "text-to-speech"])
def test_another_task(bundle: Path, tmp_path: Path, task: str) -> None:
    def change(manifest: Manifest) -> Manifest:
        return dataclasses.replace(manifest, task=task)

    copied = bundles.forge(bundle, tmp_path / "b", manifest=change)
    detail = failed(copied, "manifest")
    assert "task" in detail or "graphs" in detail


def test_a_graph_that_ignores_the_mask(bundle: Path, tmp_path: Path) -> None:
    """Right for a row alone, wrong for padded ones: what the check of padding is for."""

    def blind(folder: Path) -> None:
        path = folder / "onnx/model.onnx"
        model = onnx.load(path, load_external_data=False)
        (equal,) = [node for node in model.graph.node if node.op_type == "Equal"]
        ones = onnx.helper.make_node("Greater", [equal.input[1], equal.input[0]], list(equal.output))  # never
        model.graph.node.remove(equal)
        model.graph.node.insert(next(i for i, n in enumerate(model.graph.node) if equal.output[0] in n.input), ones)
        path.write_bytes(model.SerializeToString())

    assert "padded on the left" in failed(bundles.forge(bundle, tmp_path / "b", change=blind), "padding")


def test_a_native_graph_of_other_weights(bundle: Path, tmp_path: Path, native_kernels: ctypes.CDLL) -> None:  # noqa: ARG001
    def flip(folder: Path) -> None:
        assert bundles.flip_attribute(folder / "onnx/model.native.onnx", "interleaved")

    assert "native kernels" in failed(bundles.forge(bundle, tmp_path / "b", change=flip), "native")
