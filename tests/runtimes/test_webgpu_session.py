"""A bundle for the CPU on WebGPU: what it gives on a software GPU, and what is said where it cannot run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webgpu_environment
from command_line import PROGRAM
from placement_record import share

from helium_onnx.bundle import Bundle
from helium_onnx.errors import ProviderError
from helium_onnx.placement import TABLE, by_table
from helium_onnx.placement.graph import nodes
from helium_onnx.placement.tables import TABLES
from helium_onnx.runtimes.opening import open_session
from helium_onnx.runtimes.providers import CPU, WEBGPU, bundle_provider
from helium_onnx.runtimes.webgpu_session import WebGpuPast, check_cache_type

SCRIPT = Path(__file__).with_name("webgpu_run.py")


@pytest.fixture(scope="module")
def ran(sample_bundle_fp32: Path) -> dict[str, Any]:
    """What webgpu_run.py gave, for 8 tokens: a token takes more than a second on SwiftShader."""
    command = [sys.executable, str(SCRIPT), str(sample_bundle_fp32), "8"]
    done = subprocess.run(command, env=webgpu_environment.environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_greedy_tokens_are_the_cpus(ran: dict[str, Any]) -> None:
    # A margin that is no near-tie, so that equal tokens mean something.
    assert min(ran["margin"]) > 100 * ran["difference"]
    assert ran["tokens"]["gpu"] == ran["tokens"]["cpu"]


def test_logits_and_slots_differ_by_rounding_alone(ran: dict[str, Any]) -> None:
    # Float32 on both sides; where a prefill call has 32 tokens, keys and values differ by 0.8 and logits by 1.3.
    assert ran["difference"] < 1e-4
    assert ran["slots"] < 1e-4


def test_prefill_runs_in_chunks_below_32(ran: dict[str, Any]) -> None:
    assert ran["chunk"] == WEBGPU.prefill_chunk < 32


def test_rows_of_different_lengths_and_restored_slots(ran: dict[str, Any]) -> None:
    assert ran["rows"] < 1e-4
    assert ran["lengths"] == [6, 32]


def test_the_table_says_at_least_what_onnx_runtime_assigned(
    ran: dict[str, Any], sample_bundle_fp32: Path, record_property: Callable[[str, object], None]
) -> None:
    info = ran["placement"]
    assert info["method"] == "onnxruntime"
    assert "onnxruntime-ep-webgpu 0.4.0" in info["source"]
    for graph in info["graphs"].values():
        table = by_table(nodes(sample_bundle_fp32 / graph["file"]), TABLES["webgpu"])
        assert {left["name"] for left in table["left"]}.isdisjoint(graph["names"])
        assert graph["operators"]["MatMul"] == {"nodes": 43, "taken": 43}
        assert graph["operators"]["com.microsoft.GroupQueryAttention"]["taken"] == 6
        assert 0 < graph["partitions"] <= 3
    record_property("placement", share("cpu-fp32", info))


def test_generate_on_the_command_line(sample_bundle_fp32: Path) -> None:
    def text(*options: str, **more: Any) -> str:
        command = [*PROGRAM, "generate", str(sample_bundle_fp32), "The kernel", "--max-new-tokens", "3", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, **more)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    assert text("--provider", "webgpu", env=webgpu_environment.environment()) == text()


# Where it cannot run


def test_a_bundle_for_the_cpu_runs_on_webgpu_when_asked(sample_bundle_fp32: Path) -> None:
    bundle = Bundle.open(sample_bundle_fp32)
    assert bundle_provider(bundle, "webgpu") is WEBGPU
    assert bundle_provider(bundle, "auto") is CPU


def test_without_the_package_the_remedy_is_to_install_it(
    sample_bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_webgpu", None)
    with pytest.raises(ProviderError) as caught:
        open_session(Bundle.open(sample_bundle_fp32), provider="webgpu")
    assert "pip install" in str(caught.value.remedy)
    assert "onnxruntime-ep-webgpu==0.4.0" in str(caught.value.remedy)


def test_without_a_gpu_the_remedy_is_a_driver(sample_bundle_fp32: Path, tmp_path: Path) -> None:
    env = webgpu_environment.environment()
    nothing = tmp_path / "icd.json"
    nothing.write_text('{"file_format_version": "1.0.0", "ICD": {"library_path": "./none.so", "api_version": "1.0.5"}}')
    command = [*PROGRAM, "generate", str(sample_bundle_fp32), "A", "--provider", "webgpu", "--max-new-tokens", "1"]
    done = subprocess.run(
        command, env={**env, "VK_ICD_FILENAMES": os.fspath(nothing)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stderr[-2000:]
    assert "WebGPU finds no GPU" in done.stderr
    assert "--provider cpu" in done.stderr


def test_keys_and_values_in_another_type_are_refused(sample_bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(sample_bundle_fp32)
    check_cache_type(bundle)
    specs = bundle.manifest.graphs["decode"].inputs
    for spec in specs:
        if spec.name == "past_key_values.0.key":
            monkeypatch.setitem(spec.__dict__, "dtype", "int8")
    with pytest.raises(ProviderError) as caught:
        check_cache_type(bundle)
    assert caught.value.found == "keys and values in int8"
    assert "cpu-fp32" in str(caught.value.remedy)


def test_native_kernels_are_not_for_it(sample_bundle_fp32: Path) -> None:
    with pytest.raises(ProviderError, match="native kernels cannot run this"):
        open_session(Bundle.open(sample_bundle_fp32), provider="webgpu", choice="native")


def test_a_bundle_for_cuda_is_refused(export_sample: Callable[[str], Path]) -> None:
    with pytest.raises(ProviderError) as caught:
        open_session(Bundle.open(export_sample("cuda-fp16")), provider="webgpu")
    assert "cpu-fp32" in str(caught.value.remedy)


class FakeValue:
    """An OrtValue over host memory."""

    def __init__(self) -> None:
        self.array = np.zeros((1, 2, 8, 4), np.float32)

    def shape(self) -> list[int]:
        return list(self.array.shape)

    def numpy(self) -> np.ndarray[Any, Any]:
        return self.array.copy()

    def update_inplace(self, array: np.ndarray[Any, Any]) -> None:
        self.array[:] = array


def test_slots_go_in_and_out_of_one_row_alone() -> None:
    past = WebGpuPast([[FakeValue(), FakeValue()] for _ in range(2)], np.zeros(2, np.int64))
    given = [np.full((2, 3, 4), 1.0, np.float32), np.full((2, 3, 4), 2.0, np.float32)]
    past.row(1).write_slots(given)
    past.row(1).write_slots([slots[:, :1] + 1 for slots in given])
    assert past.lengths.tolist() == [0, 4]
    key, value = past.row(1).read_slots(2, 4)
    assert key[:, :, 0].tolist() == [[1, 2]] * 2
    assert value[:, :, 0].tolist() == [[2, 3]] * 2
    assert [slots.shape for slots in past.row(0).read_slots(0, 0)] == [(2, 0, 4)] * 2


def test_inspect_reads_the_table_where_the_package_is_missing(
    sample_bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import helium_onnx

    monkeypatch.setitem(sys.modules, "onnxruntime_ep_webgpu", None)
    info = helium_onnx.inspect(sample_bundle_fp32, provider="webgpu")
    assert info["method"] == TABLE
    assert "onnxruntime-ep-webgpu==0.4.0" in info["remedy"]
