"""Providers that are packages of their own: what is said where one is missing, broken or without a device."""

from __future__ import annotations

import dataclasses
import os
import sys
import types

import onnxruntime as ort
import pytest

from helium_onnx.errors import ProviderError
from helium_onnx.runtimes import plugins
from helium_onnx.runtimes.providers import CPU, QNN, ExecutionProvider

ROW = dataclasses.replace(QNN, name="mine", onnxruntime_name="MineExecutionProvider", plugin="onnxruntime_mine")


def refused(row: ExecutionProvider = ROW) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        plugins.add_plugin(ort.SessionOptions(), row, {})
    return caught.value


def test_a_package_that_is_missing() -> None:
    error = refused()
    assert error.what == "the execution provider mine cannot be loaded"
    assert "onnxruntime_mine" in str(error.found)
    assert error.expected == f"the package {QNN.package} beside onnxruntime {ort.__version__}"
    assert error.remedy == f"pip install --no-deps {QNN.package}"


def test_a_library_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = types.SimpleNamespace(get_library_path=lambda: "/nowhere/libmine.so")
    monkeypatch.setitem(sys.modules, "onnxruntime_mine", broken)
    assert "libmine.so" in str(refused().found)


def test_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    # By a name of its own: what is registered once stays so.
    monkeypatch.setitem(sys.modules, "onnxruntime_idle", types.SimpleNamespace(get_library_path=lambda: "x"))
    monkeypatch.setattr(ort, "register_execution_provider_library", lambda *_: None)
    assert refused(dataclasses.replace(ROW, plugin="onnxruntime_idle")).what == "MineExecutionProvider sees no device"


@pytest.mark.parametrize(("row", "expected"), [(ROW, ("text\n", "library\n")), (CPU, ("library\ntext\n", ""))])
def test_what_a_plugins_library_prints_is_no_text(
    row: ExecutionProvider, expected: tuple[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    with plugins.own_stdout(row):
        os.write(1, b"library\n")
    print("text", flush=True)
    assert capfd.readouterr() == expected
