"""CUDA, from the driver up: each layer with what is wrong and what to do about it."""

from __future__ import annotations

from helium_onnx.diagnosis.machine import attempt, first_line
from helium_onnx.diagnosis.report import Finding
from helium_onnx.runtimes import cuda_libraries, cuda_probe
from helium_onnx.runtimes.cuda_probe import MINIMUM_COMPUTE_CAPABILITY, CudaReport, DeviceInfo

PART = "CUDA"


def look(findings: list[Finding]) -> CudaReport:
    """The driver and its devices; ``findings`` gets a line for each layer.

    On a machine that has neither a driver nor onnxruntime-gpu there is one line: nobody wanted CUDA there.
    """
    report = attempt(findings, PART, "driver", cuda_probe.probe, CudaReport(problem="the driver cannot be asked"))
    problem = attempt(findings, PART, "ONNX Runtime", cuda_libraries.onnxruntime_problem, None)
    installed = attempt(findings, PART, "ONNX Runtime", lambda: cuda_libraries.installed() is not None, False)
    nobody = report.driver_version is None and report.kernel_driver_version is None and not installed
    if nobody:
        findings.append(Finding(PART, "driver", None, report.problem or "", report.remedy))
        return report
    findings.append(_driver(report))
    findings += [_device(device) for device in report.devices]
    if problem is None:
        findings.append(Finding(PART, "ONNX Runtime", True, "has the CUDA provider"))
    else:
        findings.append(Finding(PART, "ONNX Runtime", False, *problem))
    if installed:  # the package brings the libraries
        findings += attempt(findings, PART, "libraries", _libraries, [])
    if report.devices:
        findings.append(_kernels(max(device.compute_capability for device in report.devices)))
    return report


def usable(report: CudaReport) -> DeviceInfo | None:
    """The device with the most free memory among those that CUDA 13 has code for and that let us in."""
    fit = [d for d in report.devices if d.compute_capability >= MINIMUM_COMPUTE_CAPABILITY and d.free_bytes]
    return None if report.problem is not None else max(fit, key=lambda device: device.free_bytes, default=None)


def _driver(report: CudaReport) -> Finding:
    if report.problem is not None:
        return Finding(PART, "driver", False, report.problem, report.remedy)
    assert report.driver_version is not None
    version = f"{report.kernel_driver_version}, " if report.kernel_driver_version else ""
    return Finding(PART, "driver", True, f"{version}for CUDA {'.'.join(map(str, report.driver_version))}")


def _device(device: DeviceInfo) -> Finding:
    capability = ".".join(map(str, device.compute_capability))
    memory = f"{device.free_bytes / 1e9:.1f} of {device.total_bytes / 1e9:.1f} GB free"
    detail = f"{device.name}, compute capability {capability}, {memory}"
    if device.compute_capability < MINIMUM_COMPUTE_CAPABILITY:
        least = ".".join(map(str, MINIMUM_COMPUTE_CAPABILITY))
        return Finding(PART, f"GPU {device.index}", False, detail, f"CUDA 13 needs compute capability {least}")
    if not device.free_bytes:
        return Finding(PART, f"GPU {device.index}", False, detail, "see nvidia-smi for the processes that use it")
    return Finding(PART, f"GPU {device.index}", True, detail)


def _libraries() -> list[Finding]:
    missing = cuda_libraries.load_libraries()
    needed = [library for library in missing if library.needed]
    spare = [library for library in missing if not library.needed]
    found = []
    if needed:
        names = ", ".join(library.name for library in needed)
        found.append(Finding(PART, "libraries", False, f"missing: {names}", cuda_libraries.install_remedy(needed)))
    elif not spare:
        found.append(Finding(PART, "libraries", True, "cuBLAS, cuRAND, NVRTC, cuFFT, the CUDA runtime, cuDNN"))
    if spare:
        uses = ", ".join(f"{library.name} ({library.use})" for library in spare)
        remedy = cuda_libraries.install_remedy(spare)
        found.append(Finding(PART, "libraries", None, f"missing, and not needed by all: {uses}", remedy))
    return found


def _kernels(compute_capability: tuple[int, int]) -> Finding:
    """Our own CUDA kernels; without them decode runs on ONNX Runtime's."""
    try:
        from helium_onnx.kernels import cuda

        reason = cuda.reason()
        if reason is None and compute_capability < cuda.OLDEST_CAPABILITY:
            reason = f"they need compute capability {'.'.join(map(str, cuda.OLDEST_CAPABILITY))}"
    except Exception as error:
        reason = first_line(error)
    if reason is None:
        return Finding(PART, "our kernels", True, "ready; compiled for a GPU when it is first used")
    return Finding(PART, "our kernels", None, f"{reason}; ONNX Runtime's run instead, slower")
