"""What a bundle for a GPU needs before it can be measured, said before the reference has taken minutes."""

from __future__ import annotations

from helium_onnx.bundle import Bundle
from helium_onnx.errors import ProviderError
from helium_onnx.runtimes.cuda_driver import probe
from helium_onnx.runtimes.graph_loading import check_built_in
from helium_onnx.runtimes.providers import AUTO, CPU, CUDA, bundle_provider


def check_device(bundle: Bundle, provider: str = AUTO) -> None:
    """Raise ProviderError where this machine cannot run the bundle at all on ``provider``: it says what can be checked
    without a GPU.

    A bundle for the CPU runs anywhere; loading says the rest (memory, libraries).
    """
    row = bundle_provider(bundle, provider)
    check_built_in(row)
    if row is not CUDA:
        return
    report = probe()
    if report.problem is None:
        return
    remedy = f"{report.remedy}; or validate it on another machine. " if report.remedy else ""
    raise ProviderError(
        f"{bundle.path} cannot be compared on this machine: its graphs run on a GPU",
        found=report.problem,
        expected=f"an NVIDIA GPU, which recipe {bundle.manifest.recipe.get('name')} is for",
        remedy=f"{remedy}What needs no GPU: `helium-onnx verify {bundle.path}` (files, graphs, a forward pass where a "
        "CPU has the kernels) and `helium-onnx overflow CHECKPOINT` (whether float16 holds the model)",
    )


def device_name(bundle: Bundle, provider: str = AUTO) -> str | None:
    """What the bundle runs on: CUDA's GPU and driver, or another execution provider; None for the CPU."""
    row = bundle_provider(bundle, provider)
    if row is CPU:
        return None
    if row is not CUDA:
        return row.onnxruntime_name
    report = probe()
    name = report.devices[0].name if report.devices else "CUDA device"
    return f"{name} (CUDA, driver {report.kernel_driver_version or 'unknown'})"
