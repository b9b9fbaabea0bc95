"""Our CUDA kernels where there is no GPU: they compile, their names are those that the operators ask for, and every
reason why they cannot be had is said. tests/device runs them.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from helium_onnx.kernels import cuda

COMPILED: dict[tuple[tuple[int, int], str], bytes] = {}


def image(capability: tuple[int, int], define: str) -> bytes:
    if (capability, define) not in COMPILED:
        COMPILED[capability, define] = cuda.compile_kernels(capability, 3, define)
    return COMPILED[capability, define]


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "define"), [((9, 0), "HELIUM_HALF"), ((8, 0), "HELIUM_BFLOAT")])
def test_every_kernel_that_an_operator_asks_for_is_there(capability: tuple[int, int], define: str) -> None:
    names = set(re.findall(rb"\.text\.(\w+)", image(capability, define)))
    kind = "half" if define == "HELIUM_HALF" else "bfloat"
    wanted = {f"linear_16_0_0_{kind}", f"embedding_16_{kind}", "argmax_float"}
    storages = {f"linear_{b}_{n}_{z}_{kind}" for b in (4, 8) for n in (32, 64, 128, 256) for z in (0, 1)}
    wanted |= storages | {f"{name}_few" for name in storages}
    wanted |= {f"embedding_{b}_{kind}" for b in (4, 8)}
    attention = {f"attention_{kind}_{size}_{group}" for size in (16, 32, 64, 128) for group in (1, 4)}
    wanted |= attention | {f"{name}_int8" for name in attention}
    assert wanted == {name.decode() for name in names}


@pytest.mark.slow
def test_the_products_are_the_tensor_cores() -> None:
    """A compiler once dropped the loop of a kernel, which then ran faster and added up nothing (linear.cuh)."""
    ptx = compile_to_ptx("HELIUM_HALF")
    kernels = ptx.split(".visible .entry ")[1:]
    linear = {kernel.split("(")[0]: kernel.count("mma.sync") for kernel in kernels if kernel.startswith("linear_")}
    assert linear["linear_16_0_0_half"] == 8
    assert {count for name, count in linear.items() if "_16_" not in name} == {8, 16}


def compile_to_ptx(define: str) -> str:
    nvrtc: Any = importlib.import_module("cuda.bindings.nvrtc")
    headers = {path.name: path.read_bytes() for path in cuda._sources() if path.suffix != ".cu"}
    source = (cuda.SOURCES / "kernels.cu").read_bytes()
    names = [name.encode() for name in headers]
    _, program = nvrtc.nvrtcCreateProgram(source, b"kernels.cu", len(names), list(headers.values()), names)
    options = [b"--gpu-architecture=compute_90", b"--std=c++17", f"-D{define}".encode()]
    (result,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    assert int(result) == 0
    _, size = nvrtc.nvrtcGetPTXSize(program)
    text = b" " * size
    nvrtc.nvrtcGetPTX(program, text)
    return text.decode()


def test_sources_that_do_not_compile_are_an_error_with_the_compilers_words() -> None:
    with pytest.raises(RuntimeError, match=r"NVRTC refused the kernels for 1\.0.*gpu-architecture"):
        cuda.compile_kernels((1, 0), 3, "HELIUM_HALF")


def test_compiled_kernels_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def compile_kernels(capability: tuple[int, int], depth: int, define: str) -> bytes:
        calls.append((capability, depth, define))
        return define.encode()

    monkeypatch.setattr(cuda, "compile_kernels", compile_kernels)
    for _ in range(2):
        assert cuda._image((9, 0), 3, "HELIUM_HALF", tmp_path) == b"HELIUM_HALF"
        assert cuda._image((9, 0), 2, "HELIUM_HALF", tmp_path) == b"HELIUM_HALF"
        assert cuda._image((8, 9), 3, "HELIUM_BFLOAT", tmp_path) == b"HELIUM_BFLOAT"
    assert len(calls) == 3
    (tmp_path / "file").write_text("not a folder")
    assert cuda._image((9, 0), 3, "HELIUM_HALF", tmp_path / "file") == b"HELIUM_HALF"  # not kept, and no error


def test_other_sources_are_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "compile_kernels", lambda *_: b"old")
    cuda._image((9, 0), 3, "HELIUM_HALF", tmp_path)
    copy = tmp_path / "device"
    copy.mkdir()
    for path in cuda._sources():
        (copy / path.name).write_bytes(path.read_bytes() + b"\n")
    monkeypatch.setattr(cuda, "SOURCES", copy)
    monkeypatch.setattr(cuda, "compile_kernels", lambda *_: b"new")
    assert cuda._image((9, 0), 3, "HELIUM_HALF", tmp_path) == b"new"


class TestReasons:
    def test_not_built(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cuda, "LIBRARY", tmp_path / "libhelium_device.so")
        assert cuda.library(0, (9, 0)) is None
        reason = cuda.reason()
        assert reason is not None
        assert reason.startswith("no libhelium_device.so: install a C++ compiler")

    def test_no_nvrtc(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(_: str) -> ModuleType:
            raise ImportError("No module named 'cuda'")

        monkeypatch.setattr(importlib, "import_module", missing)
        assert cuda.library(0, (9, 0)) is None
        remedy = "pip install 'nvidia-cuda-nvrtc~=13.0' 'cuda-bindings~=13.0'"
        assert cuda.reason() == f"NVRTC cannot be loaded (No module named 'cuda'): {remedy}"

    def test_an_old_gpu(self) -> None:
        assert cuda.library(0, (7, 5)) is None
        assert cuda.reason() == "compute capability 7.5; ours need 8.0"

    def test_no_device(self) -> None:
        if any(Path("/dev").glob("nvidia[0-9]")):
            pytest.skip("there is a GPU")
        assert cuda.library(0, (9, 0)) is None
        assert "driver" in str(cuda.reason())


def test_the_operators_take_both_types() -> None:
    """ONNX Runtime resolves every type, and then finds no kernel for the CPU: they are the CUDA provider's."""
    table = numpy_helper.from_array(np.zeros((8, 32), ml_dtypes.bfloat16), "table")
    node = helper.make_node(
        "DeviceEmbedding", ["ids", "table"], ["x"], domain="helium_onnx.kernels",
        bits=16, block_size=0, has_zeros=0, columns=32,
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "one",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch_size", 1])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [table],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("helium_onnx.kernels", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(cuda.LIBRARY))
    with pytest.raises(Exception, match="Could not find an implementation for DeviceEmbedding"):
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("cache", ["float16", "bfloat16", "int8", "int8 beside bfloat16"])
def test_attention_is_chosen_by_its_inputs(cache: str) -> None:
    """Likewise; outputs have the type of the past."""
    table = TensorProto.BFLOAT16 if "bfloat16" in cache else TensorProto.FLOAT16
    past = TensorProto.INT8 if "int8" in cache else table
    inputs = {
        "qkv": (TensorProto.FLOAT, ["batch_size", 1, 64]),
        "past_key": (past, ["batch_size", 1, 96, 16]),
        "past_value": (past, ["batch_size", 1, 96, 16]),
        "seqlens_k": (TensorProto.INT32, ["batch_size"]),
        "cos": (table, [96, 8]),
        "sin": (table, [96, 8]),
    }
    if "int8" in cache:
        inputs |= {name: (TensorProto.FLOAT, [1, 1, 1, 16]) for name in ("key_scales", "value_scales")}
    name = "DeviceAttentionInt8" if "int8" in cache else "DeviceAttention"
    node = helper.make_node(
        name, list(inputs), ["y", "present_key", "present_value"], domain="helium_onnx.kernels",
        num_heads=2, kv_num_heads=1, head_dim=16, interleaved=1,
    )  # fmt: skip

    def loaded(present: int) -> str:
        outputs = {"y": TensorProto.FLOAT, "present_key": present, "present_value": present}
        graph = helper.make_graph(
            [node], "one",
            [helper.make_tensor_value_info(name, kind, dims) for name, (kind, dims) in inputs.items()],
            [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("helium_onnx.kernels", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        options = ort.SessionOptions()
        options.register_custom_ops_library(str(cuda.LIBRARY))
        with pytest.raises(Exception, match=r"Type Error|implementation") as caught:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return str(caught.value)

    kept = "int8" if "int8" in cache else cache
    assert f"(tensor(double)) of output arg (present_key) of node () does not match expected type (tensor({kept}))" in (
        loaded(TensorProto.DOUBLE)
    )
    if table == TensorProto.BFLOAT16:  # float16 it would convert for the CPU
        assert f"Could not find an implementation for {name}(1)" in loaded(past)
