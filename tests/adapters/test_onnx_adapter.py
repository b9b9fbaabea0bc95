"""Adapter files: what is written is read again, and every way in which a file can be wrong for a bundle."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import tiny
from peft_adapters import write_adapter

import helium_onnx
from helium_onnx import Bundle
from helium_onnx.adapters import onnx_adapter
from helium_onnx.adapters.bundle_adapters import BundleAdapters
from helium_onnx.errors import AdapterError, TargetExistsError, TargetLockedError, UsageError
from helium_onnx.locking import exclusive_lock
from helium_onnx.manifest import FileRecord

Bundles = Callable[[str], Bundle]
NAME = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def bundle(runtime_bundle: Bundles) -> Bundle:
    return runtime_bundle("fp32")


@pytest.fixture
def file(small: Path, bundle: Bundle, tmp_path: Path) -> Path:
    path = tmp_path / "new" / "small.onnx_adapter"
    helium_onnx.convert_adapter(small, bundle.path, path)
    return path


def refused(bundle: Bundle, path: Path) -> str:
    with pytest.raises(AdapterError) as caught:
        BundleAdapters(bundle).get(path)
    return str(caught.value)


def rewrite(file: Path, change: Callable[[dict[str, Any]], object], **versions: int) -> None:
    """The same adapter with other matrices or versions."""
    read = ort.AdapterFormat.read_adapter(str(file))
    matrices = {name: np.array(value.numpy()) for name, value in read.get_parameters().items()}
    change(matrices)
    made = ort.AdapterFormat()
    made.set_adapter_version(versions.get("adapter", read.get_adapter_version()))
    made.set_model_version(versions.get("model", read.get_model_version()))
    made.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in matrices.items()})
    made.export_adapter(str(file))


class TestConversion:
    def test_it_is_the_file_in_the_bundle(self, bundle: Bundle, file: Path) -> None:
        assert file.read_bytes() == (bundle.path / "adapters/small.onnx_adapter").read_bytes()
        assert [path.name for path in file.parent.iterdir()] == [file.name]

    def test_it_fits_all_bundles_of_the_checkpoint(self, runtime_bundle: Bundles, file: Path, small: Path) -> None:
        adapters = BundleAdapters(runtime_bundle("int4"))
        found, expected = adapters.get(file), adapters.get(small)
        assert found.matrices.keys() == expected.matrices.keys()
        for name, matrix in expected.matrices.items():
            np.testing.assert_array_equal(found.matrices[name], matrix)

    def test_equal_input_gives_equal_bytes_in_another_process(self, small: Path, bundle: Bundle, file: Path) -> None:
        other = file.with_name("other.onnx_adapter")
        arguments = ["convert-adapter", str(small), str(bundle.path), str(other)]
        subprocess.run([sys.executable, "-m", "helium_onnx", *arguments], check=True, capture_output=True)
        assert other.read_bytes() == file.read_bytes()

    def test_it_needs_no_torch(self, small: Path, bundle: Bundle, tmp_path: Path) -> None:
        code = (
            "import sys, helium_onnx\nhelium_onnx.convert_adapter(*sys.argv[1:])\n"
            "assert not {'torch', 'onnx', 'onnx_ir', 'peft', 'transformers'} & set(sys.modules)"
        )
        arguments = [str(small), str(bundle.path), str(tmp_path / "x.onnx_adapter")]
        subprocess.run([sys.executable, "-c", code, *arguments], check=True)

    def test_a_file_that_is_there(self, large: Path, bundle: Bundle, file: Path) -> None:
        before = file.read_bytes()
        with pytest.raises(TargetExistsError):
            helium_onnx.convert_adapter(large, bundle.path, file)
        assert file.read_bytes() == before
        helium_onnx.convert_adapter(large, bundle.path, file, force=True)
        assert file.read_bytes() == (bundle.path / "adapters/large.onnx_adapter").read_bytes()

    def test_a_folder_is_never_replaced(self, small: Path, bundle: Bundle, tmp_path: Path) -> None:
        (tmp_path / "x.onnx_adapter").mkdir()
        with pytest.raises(TargetExistsError):
            helium_onnx.convert_adapter(small, bundle.path, tmp_path / "x.onnx_adapter", force=True)

    def test_another_ending(self, small: Path, bundle: Bundle, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="ends in"):
            helium_onnx.convert_adapter(small, bundle.path, tmp_path / "x.safetensors")

    def test_two_at_once(self, small: Path, bundle: Bundle, tmp_path: Path) -> None:
        target = tmp_path / "x.onnx_adapter"
        with exclusive_lock(target), pytest.raises(TargetLockedError):
            helium_onnx.convert_adapter(small, bundle.path, target)
        assert not target.exists()

    def test_a_bundle_that_takes_none(self, small: Path, plain_bundle: Bundles, tmp_path: Path) -> None:
        with pytest.raises(AdapterError, match="take no adapters"):
            helium_onnx.convert_adapter(small, plain_bundle("fp32").path, tmp_path / "x.onnx_adapter")

    def test_an_adapter_of_the_head(self, helium: Path, bundle: Bundle, tmp_path: Path) -> None:
        adapter = write_adapter(helium, tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
        with pytest.raises(AdapterError, match="cannot be applied at run time") as caught:
            helium_onnx.convert_adapter(adapter, bundle.path, tmp_path / "x.onnx_adapter")
        assert "lm_head.weight" in str(caught.value)
        assert "merge it at export" in str(caught.value)


class TestFiles:
    def test_another_checkpoint_s(self, small: Path, file: Path, tmp_path: Path) -> None:
        """Of the same sizes: nothing else tells them apart."""
        other = tiny.write_checkpoint(tmp_path / "other", seed=7)
        bundle = helium_onnx.export(other, tmp_path / "out", recipe="cpu-fp32", adapter_mode="runtime")
        assert "made for another base model" in refused(bundle, file)
        assert BundleAdapters(bundle).get(small).matrices  # a folder of peft's does not say what it was trained on

    @pytest.mark.parametrize("keep", [0, 10, 200, -5])
    def test_truncated(self, keep: int, bundle: Bundle, file: Path) -> None:
        file.write_bytes(file.read_bytes()[:keep])
        assert "is no adapter file" in refused(bundle, file)

    def test_another_format(self, bundle: Bundle, file: Path) -> None:
        file.write_bytes(b"\0" * 500)
        assert "is no adapter file" in refused(bundle, file)

    @pytest.mark.parametrize("version", [0, 2])
    def test_another_version(self, version: int, bundle: Bundle, file: Path) -> None:
        rewrite(file, lambda _: None, adapter=version)
        assert f"adapter_version {version}" in refused(bundle, file)

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            (lambda m: m.pop(f"{NAME}.lora_A.weight"), "lacks a matrix"),
            (lambda m: m.update({f"{NAME}.lora_A.weight": np.ones((63, 2), np.float32)}), "do not fit"),
            (lambda m: m.update({f"{NAME}.lora_A.weight": np.ones((64, 3), np.float32)}), "do not fit"),
            (lambda m: m.update({f"{NAME}.lora_A.weight": np.ones((64, 2, 1), np.float32)}), "do not fit"),
            (lambda m: m.update({f"{NAME}.lora_A.weight": np.ones((64, 2), np.float16)}), "do not fit"),
            (lambda m: m[f"{NAME}.lora_B.weight"].__setitem__((1, 5), np.nan), "not finite"),
            (lambda m: m.update({"lm_head.lora_A.weight": np.ones((64, 2), np.float32)}), "lm_head.lora_A.weight"),
        ],
    )
    def test_matrices_that_do_not_fit(
        self, change: Callable[[dict[str, Any]], object], expected: str, bundle: Bundle, file: Path
    ) -> None:
        rewrite(file, change)
        assert expected in refused(bundle, file)

    def test_a_file_that_changes_is_read_again(self, large: Path, bundle: Bundle, file: Path) -> None:
        adapters = BundleAdapters(bundle)
        first = adapters.get(file)
        assert adapters.get(file) is first
        helium_onnx.convert_adapter(large, bundle.path, file, force=True)
        second = adapters.get(file)
        assert second.identity != first.identity
        assert len(second.matrices) > len(first.matrices)

    def test_a_link_to_itself(self, bundle: Bundle, file: Path) -> None:
        file.unlink()
        file.symlink_to(file)
        with pytest.raises(UsageError, match="there is no adapter"):
            BundleAdapters(bundle).get(file)


def test_the_base_s_number_is_its_weights() -> None:
    def record(path: str, text: str) -> FileRecord:
        return FileRecord(path, 1, hashlib.sha256(text.encode()).hexdigest())

    one, two = record("model-1.safetensors", "one"), record("model-2.safetensors", "two")
    number = onnx_adapter.base_number([one, two, record("config.json", "x")])
    assert 0 < number < 2**31
    assert number == onnx_adapter.base_number([two, one, record("config.json", "y")])
    assert number != onnx_adapter.base_number([one])
