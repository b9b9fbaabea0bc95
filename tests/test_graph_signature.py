"""A graph's inputs and outputs read on its bytes are those that onnx reads."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from helium_onnx.contract import TensorSpec
from helium_onnx.errors import BundleError
from helium_onnx.graph_signature import signature

KINDS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int8": TensorProto.INT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
}
SPECS = (
    TensorSpec("input_ids", "int64", ("batch_size", 1)),
    TensorSpec("total_sequence_length", "int32", ()),
    *(TensorSpec(f"past.{kind}", kind, ("batch_size", 300, "context_length", 70_000)) for kind in KINDS),
)


def write(path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Path:
    made = [
        [helper.make_tensor_value_info(s.name, KINDS[s.dtype], list(s.dims)) for s in specs]
        for specs in (inputs, outputs)
    ]
    graph = helper.make_graph([helper.make_node("Any", ["input_ids"], ["x"], domain="unknown")], "g", *made)
    path.write_bytes(helper.make_model(graph, ir_version=10).SerializeToString())
    return path


def test_as_it_was_written(tmp_path: Path) -> None:
    assert signature(write(tmp_path / "g.onnx", SPECS, SPECS[::-1])) == (SPECS, SPECS[::-1])


def test_a_type_that_no_graph_of_ours_has(tmp_path: Path) -> None:
    path = write(tmp_path / "g.onnx", SPECS[:1], SPECS[:1])
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    path.write_bytes(model.SerializeToString())
    assert signature(path)[0] == (TensorSpec("input_ids", "type 11", ("batch_size", 1)),)


@pytest.mark.parametrize("data", [b"", b"not a graph at all", b"\x3a", b"\x3a\x05\x5a\x03\x0a\x01\xff"])
def test_a_file_that_is_no_graph(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"g\.onnx holds no graph"):
        signature(tmp_path / "g.onnx")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"g\.onnx holds no graph"):
        signature(tmp_path / "g.onnx")


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    """And no other exception."""
    path = write(tmp_path / "g.onnx", SPECS, SPECS)
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        try:
            signature(path)
        except BundleError:
            continue
        pytest.fail(f"{size} of {len(whole)} bytes pass")
