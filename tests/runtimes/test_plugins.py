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


@pytest.mark.parametrize(("processor", "expected"), [("x86_64", {"htp_arch": "75"}), ("aarch64", {})])
def test_only_the_emulator_is_told_which_device_it_is(
    processor: str, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device knows its own; and what a caller gives comes before what the row does."""
    module = types.SimpleNamespace(get_library_path=lambda: "x", get_qnn_htp_path=lambda: "htp")
    monkeypatch.setitem(sys.modules, "onnxruntime_told", module)
    monkeypatch.setattr(ort, "register_execution_provider_library", lambda *_: None)
    monkeypatch.setattr(ort, "get_ep_devices", lambda: [types.SimpleNamespace(ep_name=ROW.onnxruntime_name)])
    monkeypatch.setattr("platform.machine", lambda: processor)
    given: list[dict[str, str]] = []
    options = types.SimpleNamespace(add_provider_for_devices=lambda _devices, values: given.append(values))
    row = dataclasses.replace(ROW, plugin="onnxruntime_told")
    plugins.add_plugin(options, row, {})  # type: ignore[arg-type]
    plugins.add_plugin(options, row, {"htp_arch": "73"})  # type: ignore[arg-type]
    assert given == [{"backend_path": "htp", **expected}, {"backend_path": "htp", "htp_arch": "73"}]


def test_whether_a_package_is_there_is_asked_without_loading_it() -> None:
    with pytest.raises(ProviderError) as caught:
        plugins.check_installed(ROW)
    assert caught.value.remedy == f"pip install --no-deps {ROW.package}"
    plugins.check_installed(CPU)
    plugins.check_installed(dataclasses.replace(ROW, plugin="this"))  # which prints a poem when it is loaded
    assert "this" not in sys.modules
