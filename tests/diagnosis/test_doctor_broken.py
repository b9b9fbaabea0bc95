"""``helium_onnx.doctor``: whatever of a machine is broken, the report comes."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from doctored import GB, Machine, finding, text

import helium_onnx
from helium_onnx import kernels
from helium_onnx.benchmark import conditions
from helium_onnx.diagnosis import machine
from helium_onnx.diagnosis import recipes as fits
from helium_onnx.errors import RecipeError
from helium_onnx.runtimes import cuda_libraries, cuda_probe
from helium_onnx.runtimes.cuda_probe import CudaReport, DeviceInfo


def raising(error: Exception) -> Callable[..., object]:
    def function(*_: object, **__: object) -> object:
        raise error

    return function


@pytest.mark.parametrize(
    "error", [OSError(5, "I/O error"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), KeyError()]
)
def test_files_of_the_system_that_cannot_be_read(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.conditions, "conditions", raising(error))
    monkeypatch.setattr(Path, "open", raising(error))
    report = helium_onnx.doctor()
    assert finding(report, "CPU", "processor").ok is False
    assert finding(report, "CPU", "memory").ok is False
    assert "Traceback" not in text(report)


@pytest.mark.parametrize("content", ["", "max", "9" * 5000, "memory", "\x00", "12 34"])
def test_a_control_group_that_says_nonsense(content: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("memory.max", "memory.current", "memory.stat"):
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert machine._memory() == (
        conditions.conditions(1).memory_bytes,
        pytest.approx(conditions.available_memory(), 0.2),
    )


def test_a_containers_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, content in (("max", "1000000"), ("current", "900000"), ("stat", "anon 5\ninactive_file 300000\n")):
        (tmp_path / f"memory.{name}").write_text(content)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert machine._memory() == (1_000_000, 400_000)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (kernels, "instruction_set"),
        (cuda_probe, "probe"),
        (cuda_libraries, "onnxruntime_problem"),
        (cuda_libraries, "installed"),
        (cuda_libraries, "load_libraries"),
        (fits, "shipped_targets"),
        (fits, "fit"),
        (conditions, "available_memory"),
    ],
)
@pytest.mark.parametrize(
    "error", [RuntimeError("first line\nsecond line"), RecipeError("no"), MemoryError(), OSError()]
)
def test_a_part_that_raises(
    module: types.ModuleType, name: str, error: Exception, on_machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_machine()
    if name == "available_memory":
        monkeypatch.undo()
    monkeypatch.setattr(module, name, raising(error))
    report = helium_onnx.doctor()
    shown = text(report)
    assert "Traceback" not in shown and "second line" not in shown
    assert json.loads(json.dumps(report.to_dict()))["can_run"] == report.can_run
    said = [finding for finding in report.findings if finding.ok is False] + [f for f in report.recipes if not f.runs]
    assert said


def test_an_onnxruntime_that_cannot_be_imported(on_machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", types.SimpleNamespace())
    report = on_machine()
    found = finding(report, "CPU", "ONNX Runtime")
    assert found.ok is False and "--force-reinstall" in (found.remedy or "")
    assert report.providers == ()
    assert not report.can_run
    assert {fit.why for fit in report.recipes} == {"ONNX Runtime: see above"}


def test_an_onnxruntime_of_another_version(on_machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    other = types.SimpleNamespace(
        __version__="1.40.0", package_name="onnxruntime", get_available_providers=lambda: ["CPUExecutionProvider"]
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", other)
    found = finding(on_machine(), "CPU", "ONNX Runtime")
    assert found.ok is False
    assert found.remedy == "this helium-onnx was made for 1.31: pip install 'onnxruntime~=1.31.0'"


def test_names_that_would_steer_the_terminal(on_machine: Machine) -> None:
    evil = DeviceInfo(0, "GPU \x1b[31m[bold]\x07", (9, 0), 80 * GB, 79 * GB, 1)
    shown = text(on_machine(CudaReport((13, 0), None, (evil,))))
    assert "\x1b" not in shown and "\x07" not in shown
    assert "[bold]" in shown
