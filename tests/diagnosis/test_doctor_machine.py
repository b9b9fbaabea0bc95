"""``helium_onnx.doctor`` on machines that are faked: what it says of processor, GPU, libraries and providers."""

from __future__ import annotations

from pathlib import Path

import pytest
from doctored import CPU_RECIPES, CUDA_RECIPES, GB, H200, NO_DRIVER, NO_PACKAGE, Machine, finding, running, text

import helium_onnx
from helium_onnx import kernels
from helium_onnx.diagnosis import machine
from helium_onnx.runtimes.cuda_probe import CudaReport, DeviceInfo


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
