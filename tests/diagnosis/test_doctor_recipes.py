"""``helium_onnx.doctor``: which recipes, or which bundle, fit the memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from doctored import CPU_RECIPES, CUDA_RECIPES, GB, NO_DRIVER, Machine, finding, running, text

from helium_onnx import kernels
from helium_onnx.diagnosis import recipes as fits
from helium_onnx.runtimes.cuda_probe import CudaReport, DeviceInfo


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
