"""The command ``helium-onnx doctor``."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path

import pytest
from command_line import assert_plain, invoke, on_terminal, run
from doctored import GB, NO_DRIVER, Machine, text
from fake_cuda import libcuda

from helium_onnx import diagnosis
from helium_onnx.diagnosis import machine
from helium_onnx.runtimes import cuda_libraries, cuda_probe


def test_the_command_is_the_function(on_machine: Machine) -> None:
    report = on_machine(missing=("libcublas.so.13",))
    result = invoke("doctor")
    assert result.exit_code == 0
    assert_plain(result.stdout)
    assert result.stdout.splitlines() == [line.rstrip() for line in text(report).splitlines()]
    assert json.loads(invoke("doctor", "--json").stdout) == json.loads(json.dumps(report.to_dict()))


def test_the_exit_code_says_whether_anything_runs(on_machine: Machine, tmp_path: Path) -> None:
    on_machine(NO_DRIVER, gpu_package=None, memory=(GB, GB // 2))
    assert invoke("doctor").exit_code == 1
    assert json.loads(invoke("doctor", "--json").stdout)["can_run"] is False
    on_machine(NO_DRIVER, gpu_package=None)
    assert invoke("doctor").exit_code == 0
    assert invoke("doctor", tmp_path).exit_code == 1


def test_on_a_terminal_nothing_is_cut_and_commands_can_be_copied(tmp_path: Path) -> None:
    code, shown = on_terminal("doctor", env={"LD_LIBRARY_PATH": str(libcuda(tmp_path))})
    lines = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", shown).splitlines()
    assert code == 0
    assert max(len(line) for line in lines if "remedy:" not in line) <= 80
    assert "…" not in shown
    assert any("NVIDIA Fake, compute capability 9.0" in line for line in lines)
    assert any(line.startswith("   remedy: pip install 'helium-onnx[cuda]' && pip install") for line in lines)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"VERSION": "12040"}, "the NVIDIA driver is too old (for CUDA 12.4)"),
        ({"CAPABILITY": "61"}, "too old for CUDA 13"),
        ({"INIT": "999"}, "the NVIDIA driver does not start"),
        ({"CONTEXT": "2"}, "too little free memory"),
        ({"DEVICES": "0"}, "the NVIDIA driver sees no GPU"),
    ],
)
def test_over_a_real_library(settings: dict[str, str], said: str, tmp_path: Path) -> None:
    variables = {f"FAKE_CUDA_{name}": value for name, value in settings.items()}
    done = run("doctor", env={**os.environ, "LD_LIBRARY_PATH": str(libcuda(tmp_path)), **variables})
    assert done.returncode == 0  # on the CPU something runs
    assert said in done.stdout.decode()
    assert done.stderr == b""


def test_a_library_that_is_no_library(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_bytes(b"\x7fELF" + bytes(60))
    done = run("doctor", env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)})
    assert done.returncode == 0
    assert "driver" in done.stdout.decode()
    assert done.stderr == b""


def test_remedies_name_the_versions_that_pip_would_take() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]["cuda"]
    pinned = f">={machine.ONNXRUNTIME},<1.{int(machine.ONNXRUNTIME.split('.')[1]) + 1}"
    assert f"onnxruntime{pinned}" in project["dependencies"]
    assert f"onnxruntime-gpu[cuda,cudnn]{pinned}" in extra
    assert f"'onnxruntime-gpu~={machine.ONNXRUNTIME}.0'" in cuda_probe.INSTALL
    packages = {library.package.split("~=")[0] for library in cuda_libraries.LIBRARIES}
    assert packages >= {dependency.split(">=")[0] for dependency in extra if dependency.startswith("nvidia-")}


def test_help_says_what_it_is_for() -> None:
    result = invoke("doctor", "--help")
    assert "what this machine can run" in result.stdout
    assert diagnosis.doctor.__doc__
