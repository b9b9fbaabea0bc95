"""``helium_onnx.doctor`` and its command, on machines that are faked: what is said, and that something always is."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tomllib
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import assert_plain, invoke, on_terminal, run
from fake_cuda import libcuda
from rich.console import Console

import helium_onnx
from helium_onnx import diagnosis, kernels
from helium_onnx.benchmark import conditions
from helium_onnx.diagnosis import machine, others
from helium_onnx.diagnosis import recipes as fits
from helium_onnx.diagnosis.report import DoctorReport, Finding
from helium_onnx.errors import RecipeError
from helium_onnx.kernels import cuda as device_kernels
from helium_onnx.runtimes import cuda_libraries, cuda_probe
from helium_onnx.runtimes.cuda_probe import CudaReport, DeviceInfo

GB = 10**9
H200 = DeviceInfo(0, "NVIDIA H200", (9, 0), 150 * GB, 149 * GB, 132)
CUDA_RECIPES = {recipe.name for recipe in helium_onnx.list_recipes() if recipe.execution_provider == "cuda"}
CPU_RECIPES = {recipe.name for recipe in helium_onnx.list_recipes() if recipe.execution_provider == "cpu"}
Machine = Callable[..., DoctorReport]


@pytest.fixture
def on_machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The report of a machine with the given driver and devices, packages, libraries and memory."""

    def look(
        cuda: CudaReport | None = None,
        *,
        gpu_package: str | None = "1.31.1",
        problem: tuple[str, str] | None = None,
        missing: tuple[str, ...] = (),
        kernels_reason: str | None = None,
        memory: tuple[int | None, int | None] = (64 * GB, 60 * GB),
        bundle: Path | None = None,
        plugins: tuple[str, ...] = (),
    ) -> DoctorReport:
        report = cuda or CudaReport((13, 0), "580.82.07", (H200,))
        libraries = tuple(library for library in cuda_libraries.LIBRARIES if library.name in missing)
        ours = types.SimpleNamespace(
            reason=lambda: kernels_reason, OLDEST_CAPABILITY=(8, 0), max_rows=device_kernels.max_rows
        )
        monkeypatch.setattr(cuda_probe, "probe", lambda: report)
        monkeypatch.setattr(others, "find_spec", lambda name: object() if name in plugins else None)
        monkeypatch.setattr(cuda_libraries, "installed", lambda: gpu_package)
        monkeypatch.setattr(cuda_libraries, "onnxruntime_problem", lambda: problem)
        monkeypatch.setattr(cuda_libraries, "load_libraries", lambda: libraries)
        monkeypatch.setattr(machine, "_memory", lambda: memory)
        monkeypatch.setitem(sys.modules, "helium_onnx.kernels.cuda", ours)
        monkeypatch.setattr(kernels, "cuda", ours, raising=False)
        return helium_onnx.doctor(bundle)

    return look


NO_DRIVER = CudaReport(problem="there is no NVIDIA driver here", remedy="install its driver")
NO_PACKAGE = ("the package onnxruntime-gpu is not installed", "pip install 'helium-onnx[cuda]'")


def finding(report: DoctorReport, part: str, name: str) -> Finding:
    (found,) = [finding for finding in report.findings if (finding.part, finding.name) == (part, name)]
    return found


def running(report: DoctorReport) -> set[str]:
    return {fit.recipe for fit in report.recipes if fit.runs}


def text(report: DoctorReport, width: int = 240) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    report.render(console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


# What it says of a machine


def test_a_machine_that_has_everything(on_machine: Machine) -> None:
    report = on_machine()
    assert all(finding.ok for finding in report.findings if finding.part == "CUDA")
    assert running(report) == CPU_RECIPES | CUDA_RECIPES
    assert finding(report, "CUDA", "driver").detail == "580.82.07, for CUDA 13.0"
    assert finding(report, "CUDA", "GPU 0").detail == "NVIDIA H200, compute capability 9.0, 149.0 of 150.0 GB free"
    shown = text(report)
    assert "remedy" not in shown
    assert shown.endswith("Next: helium-onnx export CHECKPOINT OUT --recipe cuda-bf16\n")


def test_recipes_for_an_npu_need_its_package(on_machine: Machine) -> None:
    fits_of = {fit.recipe: fit for fit in on_machine().recipes if fit.execution_provider == "qnn"}
    assert set(fits_of) == {"qnn-fp16", "qnn-int4"}
    assert {fit.why for fit in fits_of.values()} == {"no onnxruntime-qnn==2.7.0 here"}
    report = on_machine(plugins=("onnxruntime_qnn",))
    assert running(report) == CPU_RECIPES | CUDA_RECIPES | set(fits_of)
    assert {fit.context_length for fit in report.recipes if fit.recipe in fits_of} == {1024}


@pytest.mark.parametrize(("processor", "said"), [("x86_64", "on the emulator alone"), ("aarch64", "")])
def test_an_npu_that_is_emulated(
    processor: str, said: str, on_machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the package has no NPU, a recipe that runs is not said to be one to use."""
    monkeypatch.setattr("platform.machine", lambda: processor)
    report = on_machine(plugins=("onnxruntime_qnn",))
    assert {fit.why.partition(",")[0] for fit in report.recipes if fit.execution_provider == "qnn"} == {said}
    assert ("emulates it" in finding(report, "others", "qnn").detail) is bool(said)


def test_other_providers_have_a_line_each(on_machine: Machine) -> None:
    report = on_machine()
    assert {one.name for one in report.findings if one.part == "others"} == {"qnn", "webgpu", "coreml"}
    webgpu = finding(report, "others", "webgpu")
    assert (webgpu.ok, webgpu.detail) == (None, "not installed: pip install --no-deps onnxruntime-ep-webgpu==0.4.0")
    there = finding(on_machine(plugins=("onnxruntime_ep_webgpu",)), "others", "webgpu")
    assert there.ok and there.detail.endswith("for bundles of cpu-fp32, cpu-int4, with --provider webgpu")
    assert {fit.why for fit in report.recipes if fit.execution_provider == "coreml"} <= {
        "not in ONNX Runtime's package for this system"
    }


def test_a_package_for_elsewhere(on_machine: Machine, sample_bundle_fp32: Path, tmp_path: Path) -> None:
    helium_onnx.package(sample_bundle_fp32, tmp_path / "p", target="web")
    (fit,) = on_machine(bundle=tmp_path / "p").recipes
    assert (fit.runs, fit.why) == (False, "a package for web, which Python does not run")


def test_a_machine_where_nobody_wants_cuda_has_one_line_of_it(on_machine: Machine) -> None:
    report = on_machine(NO_DRIVER, gpu_package=None, problem=NO_PACKAGE)
    (only,) = [finding for finding in report.findings if finding.part == "CUDA"]
    assert (only.name, only.ok, only.remedy) == ("driver", None, "install its driver")
    assert running(report) == CPU_RECIPES
    assert {fit.why for fit in report.recipes if fit.recipe in CUDA_RECIPES} == {"no CUDA device"}
    assert text(report).endswith("--recipe cpu-int4\n")


def test_a_machine_whose_user_installed_the_package_but_no_driver(on_machine: Machine) -> None:
    report = on_machine(NO_DRIVER)
    assert finding(report, "CUDA", "driver").ok is False
    assert running(report) == CPU_RECIPES


def test_a_gpu_without_the_package(on_machine: Machine) -> None:
    report = on_machine(gpu_package=None, problem=NO_PACKAGE, missing=("libcublas.so.13",))
    assert finding(report, "CUDA", "ONNX Runtime").remedy == "pip install 'helium-onnx[cuda]'"
    assert "libcublas" not in text(report)  # the package brings it
    assert running(report) == CPU_RECIPES
    assert {fit.why for fit in report.recipes if fit.recipe in CUDA_RECIPES} == {"ONNX Runtime: see above"}


def test_a_driver_that_is_too_old(on_machine: Machine) -> None:
    cuda = CudaReport((12, 4), "550.54.14", (H200,), "the NVIDIA driver is too old (550.54.14, for CUDA 12.4)", "R580")
    report = on_machine(cuda)
    assert finding(report, "CUDA", "driver").detail == "the NVIDIA driver is too old (550.54.14, for CUDA 12.4)"
    assert finding(report, "CUDA", "driver").remedy == "R580"
    assert finding(report, "CUDA", "GPU 0").ok
    assert running(report) == CPU_RECIPES


def test_libraries_that_are_missing(on_machine: Machine) -> None:
    report = on_machine(missing=("libcublas.so.13", "libcudnn.so.9"))
    needed, spare = [finding for finding in report.findings if finding.name == "libraries"]
    assert (needed.ok, needed.detail) == (False, "missing: libcublas.so.13")
    assert "'nvidia-cublas~=13.0'" in (needed.remedy or "")
    assert spare.ok is None and "libcudnn.so.9" in spare.detail
    assert running(report) == CPU_RECIPES
    assert running(on_machine(missing=("libcudnn.so.9", "libnvrtc.so.13"))) == CPU_RECIPES | CUDA_RECIPES


def test_onnxruntime_under_the_cpus_files(on_machine: Machine) -> None:
    problem = ("onnxruntime's CPU files lie over those of onnxruntime-gpu", "pip install --force-reinstall ...")
    report = on_machine(problem=problem)
    found = finding(report, "CUDA", "ONNX Runtime")
    assert (found.ok, found.detail, found.remedy) == (False, *problem)
    assert running(report) == CPU_RECIPES
    assert f"   remedy: {problem[1]}\n" in text(report)


def test_our_cuda_kernels_say_why_they_are_not_there(on_machine: Machine) -> None:
    report = on_machine(kernels_reason="NVRTC is missing")
    assert finding(report, "CUDA", "our kernels").ok is None
    assert "NVRTC is missing" in finding(report, "CUDA", "our kernels").detail
    assert running(report) >= CUDA_RECIPES
    turing = DeviceInfo(0, "NVIDIA T4", (7, 5), 16 * GB, 15 * GB, 40)
    report = on_machine(CudaReport((13, 0), None, (turing,)))
    assert "compute capability 8.0" in finding(report, "CUDA", "our kernels").detail


@pytest.mark.parametrize(
    ("built", "processor", "says", "remedy"),
    [
        ("avx2", "x86_64", "built, in avx2", None),
        (None, "x86_64", "not built", "compiler"),
        ("generic", "aarch64", "plain C++ alone", None),
        (None, "aarch64", "none with vector code for this processor", None),  # a compiler would not help
    ],
)
def test_our_kernels_for_this_processor(
    built: str | None, processor: str, says: str, remedy: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kernels, "instruction_set", lambda: built)
    monkeypatch.setattr(kernels, "LIBRARY", tmp_path / "none.so")
    monkeypatch.setattr(machine.platform, "machine", lambda: processor)
    found = finding(helium_onnx.doctor(), "CPU", "our kernels")
    assert says in found.detail
    assert remedy in (found.remedy or "") if remedy else found.remedy is None
    assert found.ok is (True if built == "avx2" else None)


def test_devices_that_are_too_old_or_busy(on_machine: Machine) -> None:
    old = DeviceInfo(0, "NVIDIA GTX 1080", (6, 1), 8 * GB, 0, 20)
    busy = DeviceInfo(1, "NVIDIA A100", (8, 0), 80 * GB, 0, 108)
    turing = DeviceInfo(2, "NVIDIA T4", (7, 5), 16 * GB, 15 * GB, 40)
    report = on_machine(CudaReport((13, 0), None, (old, busy, turing)))
    assert [finding(report, "CUDA", f"GPU {index}").ok for index in range(3)] == [False, False, True]
    assert "compute capability 7.5" in (finding(report, "CUDA", "GPU 0").remedy or "")
    assert running(report) == (CPU_RECIPES | CUDA_RECIPES) - {"cuda-bf16"}
    (bf16,) = [fit for fit in report.recipes if fit.recipe == "cuda-bf16"]
    assert bf16.why == "bfloat16 needs compute capability 8.0"


# Which recipes fit


def test_a_gpu_with_less_memory_takes_a_shorter_context(on_machine: Machine) -> None:
    def fit(free: int, recipe: str) -> tuple[bool, int | None, str]:
        device = DeviceInfo(0, "NVIDIA", (8, 9), 8 * GB, free, 46)
        report = on_machine(CudaReport((13, 0), None, (device,)))
        (row,) = [row for row in report.recipes if row.recipe == recipe]
        return row.runs, row.context_length, row.why

    assert fit(7 * GB, "cuda-fp16") == (True, 4096, "")
    runs, context, why = fit(int(5.5 * GB), "cuda-fp16")
    assert runs and context is not None and 256 <= context < 4096
    assert why == f"with --context {context}: 5.5 GB of the GPU are free"
    assert fit(4 * GB, "cuda-fp16") == (False, None, "only 4.0 GB of the GPU are free: close other programs")
    assert fit(4 * GB, "cuda-int4")[0]


def test_the_context_that_is_named_is_the_longest_that_fits() -> None:
    (target,) = [target for target in fits.shipped_targets() if target.recipe.name == "cuda-fp16"]
    free = target.needed_bytes(1024)
    assert fits.fit(target, fits.Place("the GPU", free, 80 * GB)).context_length == 1024
    assert fits.fit(target, fits.Place("the GPU", free - 1, 80 * GB)).context_length == 768


def test_a_machine_with_little_memory(on_machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "instruction_set", lambda: "avx2")
    monkeypatch.setattr(kernels, "library", lambda: object())
    report = on_machine(NO_DRIVER, gpu_package=None, memory=(8 * GB, 3 * GB))
    why = {fit.recipe: (fit.runs, fit.why) for fit in report.recipes}
    assert why["cpu-fp32"] == (False, "more than memory holds")
    assert why["cpu-int4"] == (True, "")
    assert why["cpu-int8"][0] and why["cpu-int8"][1].startswith("with --context ")
    report = on_machine(NO_DRIVER, gpu_package=None, memory=(1 * GB, GB // 2))
    assert not report.can_run
    assert text(report).endswith("Nothing runs here as it is: see above.\n")


def test_memory_that_nobody_knows(on_machine: Machine) -> None:
    report = on_machine(memory=(None, None))
    assert running(report) == CPU_RECIPES | CUDA_RECIPES
    assert {fit.why for fit in report.recipes if fit.recipe in CPU_RECIPES} == {"if memory holds it"}


@pytest.mark.parametrize(
    ("recipe", "built", "weights", "cache"),
    [
        ("cpu-int4", True, 1.26, 2),  # our kernels keep keys and values in float16
        ("cpu-int4", False, 1.26, 4),
        ("cpu-fp32", True, 8.69, 4),
        ("cuda-fp16", True, 4.35, 2),
    ],
)
def test_bytes_are_those_of_real_bundles(
    recipe: str, built: bool, weights: float, cache: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured on exports of the 2 B model: 1.26 GB (cpu-int4), 8.69 GB (cpu-fp32); 4.35 GB is published for fp16."""
    monkeypatch.setattr(kernels, "vectorized", lambda: built)
    (target,) = [target for target in fits.shipped_targets() if target.recipe.name == recipe]
    token = cache * 2 * 24 * 20 * 128
    beside = target.needed_bytes(4096) - 4096 * token
    assert weights * GB <= beside <= weights * GB + 1.2 * GB
    assert target.needed_bytes(4096) - target.needed_bytes(2048) == pytest.approx(2048 * token, rel=0.01)


def test_a_bundle(on_machine: Machine, sample_bundle_fp32: Path) -> None:
    report = on_machine(NO_DRIVER, gpu_package=None, bundle=sample_bundle_fp32)
    assert (report.bundle, report.context_length) == (str(sample_bundle_fp32), 2048)
    (row,) = report.recipes
    assert (row.recipe, row.runs, row.context_length) == ("cpu-fp32", True, 2048)
    assert row.needed_bytes is not None and row.needed_bytes < GB
    assert f"Next: helium-onnx generate {sample_bundle_fp32}" in text(report)


def test_no_bundle(on_machine: Machine, tmp_path: Path) -> None:
    report = on_machine(bundle=tmp_path / "none")
    assert not report.can_run
    assert "There is no folder" in finding(report, "bundle", "bundle").detail
    assert text(report).endswith("This bundle does not run here: see above.\n")


# Whatever is broken, the report comes


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


# The command


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
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
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
