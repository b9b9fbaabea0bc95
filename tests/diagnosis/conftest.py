"""Machines that are faked."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
from doctored import GB, H200, Machine

import helium_onnx
from helium_onnx import kernels
from helium_onnx.diagnosis import machine, other_providers
from helium_onnx.diagnosis.report import DoctorReport
from helium_onnx.kernels import cuda as device_kernels
from helium_onnx.runtimes import cuda_libraries, cuda_probe
from helium_onnx.runtimes.cuda_probe import CudaReport


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
        monkeypatch.setattr(other_providers, "find_spec", lambda name: object() if name in plugins else None)
        monkeypatch.setattr(cuda_libraries, "installed", lambda: gpu_package)
        monkeypatch.setattr(cuda_libraries, "onnxruntime_problem", lambda: problem)
        monkeypatch.setattr(cuda_libraries, "load_libraries", lambda: libraries)
        monkeypatch.setattr(machine, "_memory", lambda: memory)
        monkeypatch.setitem(sys.modules, "helium_onnx.kernels.cuda", ours)
        monkeypatch.setattr(kernels, "cuda", ours, raising=False)
        return helium_onnx.doctor(bundle)

    return look
