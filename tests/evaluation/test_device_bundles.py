"""validate and compare of bundles for a GPU: what they say without one, and that they measure over a CudaSession.

The session runs over the host's memory and ONNX Runtime's CPU provider (tests/runtimes/host_device.py), whose float16
is at least as exact as a GPU's.
"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tiny
from command_line import invoke
from rich.console import Console

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.checkpoint import Checkpoint, expected_tensors
from helium_onnx.errors import ProviderError
from helium_onnx.evaluation import device, measure, parity
from helium_onnx.evaluation.bundle_weights import BundleWeights
from helium_onnx.evaluation.parity import Difference, ParityReport, ParityRow
from helium_onnx.recipe import MatrixSettings, Quantization, Recipe, load_recipe
from helium_onnx.runtimes.cuda_driver import CudaReport, DeviceInfo
from helium_onnx.runtimes.providers import COREML

sys.path.append(str(Path(__file__).parents[1] / "runtimes"))

VALID = Path(__file__).parents[2] / "benchmarks" / "data" / "valid.jsonl"
PROBLEM = "there is no NVIDIA driver here (libcuda.so.1 is not found)"
GPU = CudaReport((13, 0), "580.65.06", (DeviceInfo(0, "A GPU", (9, 0), 80 << 30, 79 << 30, 132),))


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "probe", lambda: CudaReport(problem=PROBLEM, remedy="install the driver"))


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from host_device import HostDevice

    from helium_onnx.runtimes import opening

    monkeypatch.setattr(device, "probe", lambda: GPU)
    monkeypatch.setattr(opening, "cuda_device", lambda _bundle: HostDevice())


@pytest.fixture(scope="session")
def half(export_sample: Callable[[str], Path]) -> Path:
    """The sample under cuda-fp16."""
    return export_sample("cuda-fp16")


@pytest.mark.usefixtures("without_gpu")
def test_without_a_gpu_all_is_said_before_the_reference_is_computed(
    half: Path, sample_bundle_fp32: Path, sample_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the reference was asked for")

    for module, name in ((measure, "stream"), (measure, "other_checkpoint"), (parity, "_references")):
        monkeypatch.setattr(module, name, never)
    calls: list[Callable[[], object]] = [
        lambda: helium_onnx.validate(half, against=sample_checkpoint),
        lambda: helium_onnx.validate(half, against=sample_checkpoint, text=VALID),
        lambda: helium_onnx.compare([sample_bundle_fp32, half], against=sample_checkpoint, text=VALID),
    ]
    for call in calls:
        with pytest.raises(ProviderError) as caught:
            call()
        text = str(caught.value)
        assert f"{half} cannot be compared on this machine" in text
        assert PROBLEM in text and "recipe cuda-fp16" in text and "install the driver" in text
        assert f"helium-onnx verify {half}" in text and "helium-onnx overflow CHECKPOINT" in text
    result = invoke("validate", half, "--against", sample_checkpoint)
    assert result.exit_code == 1 and "Traceback" not in result.stderr


def test_a_bundle_for_the_cpu_asks_for_no_gpu(sample_bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> None:
        raise AssertionError("CUDA was asked")

    monkeypatch.setattr(device, "probe", never)
    bundle = Bundle.open(sample_bundle_fp32)
    device.check_device(bundle)
    assert device.device_name(bundle) is None


def test_a_bundle_for_an_npu_is_measured_on_the_cpu(
    sample_checkpoint: Path, export_sample: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it cannot run, that is said before the reference is computed, and --provider cpu runs the same graphs."""
    bundle = export_sample("coreml-fp16")
    assert device.device_name(Bundle.open(bundle)) == "CoreMLExecutionProvider"
    options = ("--against", sample_checkpoint, "--text", VALID, "--limit", 1, "--max-tokens", 80, "--max-new-tokens", 4)
    result = invoke("validate", bundle, *options, "--provider", "cpu", "--json")
    assert result.exit_code == 0, result.stderr
    figures = json.loads(result.stdout)["figures"]
    assert figures["kl"]["value"] < 1e-4 and figures["same_top1"]["value"] > 0.95
    result = invoke("validate", bundle, "--against", sample_checkpoint, "--provider", "cpu", "--max-new-tokens", 4)
    assert result.exit_code == 0 and "passed" in result.stdout
    if COREML.onnxruntime_name not in onnxruntime.get_available_providers():
        monkeypatch.setattr(measure, "stream", None)
        result = invoke("compare", bundle, *options)
        assert result.exit_code == 1
        assert "coreml cannot be loaded" in result.stderr and "--provider cpu" in result.stderr


@pytest.mark.usefixtures("with_gpu")
def test_figures_of_a_cuda_session(half: Path, sample_checkpoint: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"limit": 2, "max_tokens": 160, "max_new_tokens": 4}
    report = helium_onnx.validate(half, against=sample_checkpoint, text=VALID, **options)
    assert report.figures.positions == 2 * 159 and report.figures.not_finite == 0
    assert 0 < report.figures.kl.value < 1e-4  # rounded to float16, and otherwise right
    assert report.figures.same_top1.value > 0.98
    assert report.conditions.machine.startswith("A GPU (CUDA, driver 580.65.06); ")
    assert report.conditions.threads == 0
    assert max(row.residual for row in report.layers) < 1e-6
    stream = io.StringIO()
    report.render(Console(file=stream, width=200))
    assert "threads" not in stream.getvalue() and "A GPU (CUDA" in stream.getvalue()
    report.write_html(tmp_path / "page.html")
    assert "ONNX Runtime, on the GPU" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("with_gpu")
def test_a_wrong_graph_shows(half: Path, sample_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures are those of the session: a prefilled token that is lost is seen."""
    from helium_onnx.runtimes.cuda_session import CudaSession

    run = CudaSession.run

    def forgets(self: CudaSession, phase: Any, ids: Any, past: Any) -> Any:
        logits = run(self, phase, ids, past)
        past.lengths[:] = np.maximum(past.lengths - 1, 0)
        return logits

    monkeypatch.setattr(CudaSession, "run", forgets)
    monkeypatch.setattr(measure, "CHUNK", 16)
    options: dict[str, Any] = {"limit": 1, "max_tokens": 96, "max_new_tokens": 2}
    report = helium_onnx.validate(half, against=sample_checkpoint, text=VALID, **options)
    assert report.figures.kl.value > 1e-2


@pytest.mark.usefixtures("with_gpu")
def test_parity_beside_transformers(half: Path, sample_checkpoint: Path) -> None:
    report = helium_onnx.validate(half, against=sample_checkpoint, prompts=["To insert a table"], max_new_tokens=6)
    (row,) = report.rows
    assert report.tolerance is None and report.passed
    assert row.model is not None
    for found in (row.model, row.prefill, row.decode):
        assert 0 < found.relative < 1e-2


def test_what_no_cpu_can_run_is_none() -> None:
    """model.onnx in bfloat16: a CPU has no kernels for it."""
    good = Difference(4, 1e-2, 10.0)
    row = ParityRow("text", 4, None, good, good, 8, None)
    report = ParityReport("b", "cuda-bf16", "c", None, None, {}, (row,))
    assert report.passed and row.worst == good.relative
    assert json.loads(json.dumps(report.to_dict()))["rows"][0]["model"] is None
    stream = io.StringIO()
    report.render(Console(file=stream, width=140))
    assert "not run" in stream.getvalue() and "half precision differ" in stream.getvalue()


def recipe(compute: str, bits: int, *, block: int = 32, symmetric: bool = True) -> Recipe:
    base = load_recipe("cuda-fp16" if compute == "float16" else "cuda-bf16")
    one = MatrixSettings(bits, block, symmetric, compute) if bits != 32 else MatrixSettings()  # type: ignore[arg-type]
    method = "none" if bits == 32 else "round-to-nearest"
    return dataclasses.replace(base, quantization=Quantization(method, 0, linear=one, head=one, embedding=one))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("made_with", "bound"),
    [
        (recipe("float16", 32), 1e-3),
        (recipe("bfloat16", 32), 0.0),
        (recipe("float16", 4), 0.12),
        (recipe("bfloat16", 4, block=64, symmetric=False), 0.12),
        (recipe("bfloat16", 8, block=64), 0.02),
    ],
    ids=lambda value: value.name if isinstance(value, Recipe) else None,
)
@pytest.mark.parametrize("tie", [False, True])
def test_stored_weights_are_read_back(made_with: Recipe, bound: float, tie: bool, tmp_path: Path) -> None:
    """bfloat16, packed queries, keys and values, scales in either type; a bfloat16 checkpoint is stored as it is."""
    checkpoint = Checkpoint.open(tiny.write_checkpoint(tmp_path / "checkpoint", tie=tie))
    bundle = helium_onnx.export(checkpoint.folder, tmp_path / "bundle", recipe=made_with)
    stored = BundleWeights(bundle)
    for name, shape in expected_tensors(checkpoint.config).items():
        ours, theirs = stored.read(name), checkpoint.read(name)
        assert (ours.shape, ours.dtype) == (shape, np.float32)
        assert np.linalg.norm(ours - theirs) <= max(bound, 1e-3 if len(shape) == 1 else 0) * np.linalg.norm(theirs), (
            name
        )
