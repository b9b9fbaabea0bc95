"""Tensors at an address: what they are to ONNX Runtime, and what a graph file refers to."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from host_device import HostDevice
from onnx.external_data_helper import uses_external_data

from helium_onnx.bundle import Bundle
from helium_onnx.errors import BundleError
from helium_onnx.runtimes.cuda_device import Device
from helium_onnx.runtimes.device_buffers import DeviceBuffers, HostBuffers
from helium_onnx.runtimes.device_tensors import ELEMENT_TYPES, DeviceTensor, ort_value
from helium_onnx.runtimes.graph_initializers import StoredInitializer, stored_initializers


@pytest.mark.parametrize("dtype", list(ELEMENT_TYPES))
def test_a_value_over_memory(dtype: str) -> None:
    kind = ELEMENT_TYPES[dtype]
    memory = np.arange(24).astype(kind.numpy).reshape(2, 3, 4)
    tensor = DeviceTensor(memory.ctypes.data, dtype, memory.shape)
    assert tensor.nbytes == memory.nbytes
    value = ort_value(tensor, "cpu", 0)
    assert value.element_type() == kind.onnx == getattr(onnx.TensorProto, dtype.upper().replace("FLOAT32", "FLOAT"))
    assert (value.data_ptr(), list(value.shape())) == (memory.ctypes.data, [2, 3, 4])
    assert value.data_type() == f"tensor({'float' if dtype == 'float32' else dtype})"
    row = tensor.rows(1, 1)
    assert row.address == memory[1:].ctypes.data and row.shape == (1, 3, 4)
    if dtype != "bfloat16":  # for which numpy has no name
        np.testing.assert_array_equal(value.numpy(), memory)
        memory[0, 0, 0] = 7
        assert value.numpy()[0, 0, 0] == 7


def test_what_describes_a_value_is_freed_with_it() -> None:
    """And the memory is not. ONNX Runtime gets a block of its own for each, a hundred bytes or more."""
    memory = np.ones(4, np.float32)
    tensor = DeviceTensor(memory.ctypes.data, "float32", (4,))

    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    for _ in range(1000):
        ort_value(tensor, "cpu", 0)
    before = resident()
    for _ in range(100_000):
        ort_value(tensor, "cpu", 0)
    assert resident() - before < 3_000_000
    assert memory.sum() == 4


def test_a_value_on_cuda_is_one_of_its_device() -> None:
    value = ort_value(DeviceTensor(1 << 20, "bfloat16", (2, 2)), "cuda", 0)
    assert value.device_name() == "cuda" and value.data_ptr() == 1 << 20


@pytest.mark.parametrize("graph", ["prefill", "decode", "native_decode"])
def test_the_initializers_of_a_graph(cuda_bundle: Bundle, graph: str) -> None:
    """As onnx reads them, and as the manifest has them."""
    model = onnx.load(cuda_bundle.graph_path(graph), load_external_data=False)
    names = {kind.onnx: name for name, kind in ELEMENT_TYPES.items()}
    expected = {}
    for tensor in model.graph.initializer:
        if uses_external_data(tensor):
            place = {entry.key: entry.value for entry in tensor.external_data}
            expected[tensor.name] = (names[tensor.data_type], tuple(tensor.dims), int(place["offset"]))
    found = stored_initializers(cuda_bundle, graph)
    assert {one.name: (one.dtype, one.shape, one.record.offset) for one in found} == expected
    assert len(expected) > 20
    assert all(isinstance(one, StoredInitializer) and one.record in cuda_bundle.manifest.tensors for one in found)


@pytest.mark.parametrize(
    ("field", "value"), [("location", "elsewhere"), ("offset", "77"), ("offset", "0"), ("offset", "x")]
)
def test_an_initializer_that_is_nowhere(cuda_bundle: Bundle, copied: Bundle, field: str, value: str) -> None:
    model = onnx.load(copied.graph_path("decode"), load_external_data=False)
    tensor = next(one for one in model.graph.initializer if one.name == "model.norm.weight")
    for entry in tensor.external_data:
        if entry.key == field:
            entry.value = value
    copied.graph_path("decode").write_bytes(model.SerializeToString())
    assert stored_initializers(cuda_bundle, "decode")
    with pytest.raises(BundleError, match="cannot be told"):
        stored_initializers(copied, "decode")


@pytest.fixture
def copied(cuda_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A bundle of its own, to spoil."""
    return Bundle.open(shutil.copytree(cuda_bundle.path, tmp_path / "copy"))


def test_a_file_that_is_no_graph(copied: Bundle) -> None:
    path = copied.graph_path("prefill")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BundleError, match="cannot be told"):
        stored_initializers(copied, "prefill")
    path.unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        stored_initializers(copied, "prefill")


def test_buffers_grow_and_are_reused() -> None:
    device = HostDevice()
    seam: Device = device
    buffers, host = DeviceBuffers(seam), HostBuffers(seam)
    first = buffers.get("ids", "int64", 4)
    assert buffers.get("ids", "int64", 2) == DeviceTensor(first.address, "int64", (2,))
    assert buffers.get("other", "int64", 2).address != first.address
    assert device.held_bytes == 32 + 16
    assert buffers.get("ids", "int64", 5).nbytes == 40 and device.held_bytes == 40 + 16
    buffers.free()
    assert not device.held
    array = host.get("ids", "int64", 4)
    assert host.get("ids", "int64", 2, 2).ctypes.data == array.ctypes.data
    larger = host.get("ids", "int64", 5)
    assert larger.ctypes.data != array.ctypes.data
    assert host.get("ids", "int64", 8).ctypes.data == larger.ctypes.data  # twice as large at once
    assert device.driver.calls.count("pinned") == 2


def test_past_and_present_of_the_contract_fit(cuda_bundle: Bundle) -> None:
    """What the session relies on: the same tensors in the same order in and out, of every graph that it runs."""
    for graph in ("prefill", "decode", "native_decode"):
        record = cuda_bundle.manifest.graphs[graph]
        past = [spec for spec in record.inputs if spec.name.startswith("past_key_values.")]
        present = [spec for spec in record.outputs if spec.name.startswith("present.")]
        assert [spec.name.replace("past_key_values", "present") for spec in past] == [spec.name for spec in present]
        assert past == [spec for spec in cuda_bundle.manifest.graphs["decode"].inputs if spec in past]
        assert {spec.name for spec in record.inputs} - {spec.name for spec in past} <= {
            "input_ids",
            "seqlens_k",
            "total_sequence_length",
        }
