"""What the tests of ``helium_onnx.doctor`` share: machines that there are not, and parts of a report."""

from __future__ import annotations

import io
from collections.abc import Callable

from rich.console import Console

import helium_onnx
from helium_onnx.diagnosis.report import DoctorReport, Finding
from helium_onnx.runtimes.cuda_probe import CudaReport, DeviceInfo

GB = 10**9
H200 = DeviceInfo(0, "NVIDIA H200", (9, 0), 150 * GB, 149 * GB, 132)
CUDA_RECIPES = {recipe.name for recipe in helium_onnx.list_recipes() if recipe.execution_provider == "cuda"}
CPU_RECIPES = {recipe.name for recipe in helium_onnx.list_recipes() if recipe.execution_provider == "cpu"}
Machine = Callable[..., DoctorReport]

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
