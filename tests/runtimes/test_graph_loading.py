"""A graph that does not run where it should is an error that says so: nothing falls back."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace

import onnxruntime as ort
import pytest

from helium_onnx.bundle import Bundle
from helium_onnx.errors import ProviderError, ResourceError
from helium_onnx.runtimes.graph_loading import SUPPORTED, check_assignment, load_graph, session_options
from helium_onnx.runtimes.providers import CPU, CUDA, ExecutionProvider

RECORDING = {"session.record_ep_graph_assignment_info": "1"}


def load(bundle: Bundle, row: ExecutionProvider, graph: str = "decode") -> ort.InferenceSession:
    record = bundle.manifest.graphs[graph]
    return load_graph(bundle.graph_path(graph), session_options(row, 1), row, bundle, record)


def test_a_provider_that_is_not_there_is_no_run_on_the_cpu(
    cuda_bundle: Bundle, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    """This ONNX Runtime knows no CUDA; with one for GPUs the same happens where CUDA does not start."""
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has the provider, and its sessions may start")
    with pytest.raises(ProviderError, match=r"did not start CUDAExecutionProvider\n.*CPUExecutionProvider"):
        load(cuda_bundle, CUDA)
    assert "Falling back" not in capfd.readouterr().out
    recwarn.clear()


def test_nodes_that_a_provider_does_not_take_are_named(cuda_bundle: Bundle) -> None:
    """Azure's provider, which is in every ONNX Runtime, takes none of these."""
    row = dataclasses.replace(CUDA, onnxruntime_name="AzureExecutionProvider", options={})
    assert row.config["session.disable_cpu_ep_fallback"] == "1"
    with pytest.raises(ProviderError) as caught:
        load(cuda_bundle, row)
    error = caught.value
    assert error.what == "AzureExecutionProvider does not take all of decode.onnx"
    assert error.found is not None and error.expected == "every node on AzureExecutionProvider"
    assert re.search(r"\S+ \(\w+\) on CPUExecutionProvider, .* and \d+ more", error.found)
    assert error.remedy is not None and SUPPORTED in error.remedy and ort.__version__ in error.remedy


def test_an_assignment_that_is_right_passes(cuda_bundle: Bundle) -> None:
    row = dataclasses.replace(CPU, config=RECORDING)
    session = load(cuda_bundle, row)
    assert {part.ep_name for part in session.get_provider_graph_assignment_info()} == {"CPUExecutionProvider"}


def test_one_node_elsewhere_is_enough() -> None:
    nodes = [SimpleNamespace(name="/model/layers.3/Shape", op_type="Shape"), SimpleNamespace(name="", op_type="Split")]
    parts = [
        SimpleNamespace(ep_name="CUDAExecutionProvider", get_nodes=lambda: [SimpleNamespace(name="a", op_type="Mul")]),
        SimpleNamespace(ep_name="CPUExecutionProvider", get_nodes=lambda: nodes),
    ]
    session = SimpleNamespace(get_provider_graph_assignment_info=lambda: parts)
    with pytest.raises(ProviderError) as caught:
        check_assignment(session, CUDA, SimpleNamespace(name="decode.onnx"))  # type: ignore[arg-type]
    assert caught.value.found == (
        "/model/layers.3/Shape (Shape) on CPUExecutionProvider, a node without a name (Split) on CPUExecutionProvider"
    )


def test_no_memory_on_a_gpu_is_a_lack_of_memory(cuda_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")

    monkeypatch.setattr(ort, "InferenceSession", fail)
    with pytest.raises(ResourceError, match=r"too little memory to load decode\.onnx"):
        load(cuda_bundle, CUDA)
