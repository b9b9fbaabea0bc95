"""StoreEmbedding, StoreLinear, StoreRemaining: every weight has one place in the file, and the graph says where."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import graph_making
import onnx_ir as ir
import pytest

from helium_onnx.exporter.passes.set_compute_type import SetComputeType
from helium_onnx.exporter.passes.store_weights import EMBEDDING, HEAD, StoreEmbedding, StoreLinear, StoreRemaining
from helium_onnx.exporter.trace import trace
from helium_onnx.exporter.weights import ALIGNMENT, WeightPlan
from helium_onnx.recipe import MatrixSettings, Quantization

INT4 = MatrixSettings(4, 32, symmetric=False)
FLOAT32 = Quantization()
ALL_INT4 = Quantization("round-to-nearest", 4, INT4, INT4, INT4)

Store = Callable[[ir.Model, Quantization], WeightPlan]


def store(model: ir.Model, quantization: Quantization, *, tie: bool = False) -> WeightPlan:
    plan, config = WeightPlan(), graph_making.config(tie_word_embeddings=tie)
    StoreEmbedding(plan, quantization)(model)
    StoreLinear(plan, config, quantization)(model)
    StoreRemaining(plan, config)(model)
    return plan


def places(model: ir.Model) -> dict[str, tuple[int, int]]:
    """Offset and bytes of each initializer; all of them are in the weights file."""
    result = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        assert isinstance(tensor, ir.ExternalTensor)
        assert tensor.location == "model.onnx_data"
        assert tensor.offset is not None
        assert tensor.length is not None
        result[name] = (tensor.offset, tensor.length)
    return result


def test_float32(traced: ir.Model) -> None:
    plan = store(traced, FLOAT32)
    counts = graph_making.operators(traced)
    assert counts["MatMul"] == 3 * 7 + 1
    assert counts["Transpose"] == 0
    assert counts["Gather"] == 1
    assert traced.graph.initializers["model.layers.2.mlp.down_proj.weight.transposed"].shape == ir.Shape([96, 64])
    records = {record.name: record for record in plan.records()}
    assert set(records) == set(places(traced))
    assert {(r.offset, r.nbytes) for r in records.values()} == set(places(traced).values())
    assert records[f"{HEAD}.transposed"].source == HEAD
    assert records["cos"].source == "config.json"


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16])
def test_transposed_in_either_type(dtype: ir.DataType, traced: ir.Model) -> None:
    """For runtimes that know no FusedMatMul."""
    plan, config = WeightPlan(), graph_making.config()
    SetComputeType(dtype)(traced)
    StoreLinear(plan, config, FLOAT32, transposed=True)(traced)
    counts = graph_making.operators(traced)
    assert (counts["MatMul"], counts["com.microsoft.FusedMatMul"]) == (3 * 7 + 1, 0)
    records = {record.name: record for record in plan.records()}
    down = records["model.layers.2.mlp.down_proj.weight.transposed"]
    assert (down.dtype, down.shape) == (dtype.numpy().name, (96, 64))
    assert down.nbytes == 96 * 64 * dtype.itemsize


def test_int4(traced: ir.Model) -> None:
    store(traced, ALL_INT4)
    counts = graph_making.operators(traced)
    assert counts["com.microsoft.MatMulNBits"] == 3 * 7 + 1
    assert counts["com.microsoft.GatherBlockQuantized"] == 1
    assert counts["MatMul"] == counts["Gather"] == counts["Transpose"] == 0
    node = next(n for n in traced.graph if n.op_type == "MatMulNBits" and "down_proj" in str(n.inputs[1].name))  # type: ignore[union-attr]
    assert {name: a.as_int() for name, a in node.attributes.items()} == {
        "K": 96, "N": 64, "bits": 4, "block_size": 32, "accuracy_level": 4,
    }  # fmt: skip
    assert [str(value.shape) for value in node.inputs[1:] if value is not None] == ["[64,3,16]", "[64,3]", "[64,2]"]
    assert EMBEDDING not in traced.graph.initializers


def test_scales_in_float16(traced: ir.Model) -> None:
    half = dataclasses.replace(INT4, scales="float16")
    plan = store(traced, Quantization("round-to-nearest", 4, half, half, half))
    records = {record.name: record for record in plan.records()}
    readers = [node for node in traced.graph if node.op_type in ("MatMulNBits", "GatherBlockQuantized")]
    assert len(readers) == 3 * 7 + 2
    for node in readers:
        scales = node.inputs[2]
        assert scales is not None
        cast = scales.producer()
        assert cast is not None
        assert (cast.op_type, scales.dtype, scales.shape) == ("Cast", ir.DataType.FLOAT, cast.inputs[0].shape)  # type: ignore[union-attr]
        record = records[str(cast.inputs[0].name)]  # type: ignore[union-attr]
        assert (record.dtype, record.nbytes) == ("float16", 2 * record.shape[0] * record.shape[1])


@pytest.mark.parametrize("quantization", [FLOAT32, ALL_INT4], ids=["float32", "int4"])
def test_places_are_aligned_and_apart(quantization: Quantization, traced: ir.Model) -> None:
    plan = store(traced, quantization)
    end = 0
    for offset, length in sorted(places(traced).values()):
        assert offset % ALIGNMENT == 0
        assert offset >= end
        end = offset + length
    assert end == plan.total_bytes


def tied() -> ir.Model:
    return trace(graph_making.config(tie_word_embeddings=True, num_hidden_layers=1))


def test_a_tied_head_reads_the_bytes_of_an_embedding_stored_alike() -> None:
    model = tied()
    plan = store(model, ALL_INT4, tie=True)
    found = places(model)
    for part in ("quantized", "scales", "zero_points"):
        assert found[f"{HEAD}.{part}"] == found[f"{EMBEDDING}.{part}"]
    assert not any(record.name.startswith(HEAD) for record in plan.records())


@pytest.mark.parametrize(
    "quantization",
    [FLOAT32, Quantization("round-to-nearest", 4, INT4, INT4, MatrixSettings())],
    ids=["float32", "embedding float32"],
)
def test_a_tied_head_stored_otherwise_is_made_of_the_embedding(quantization: Quantization) -> None:
    model = tied()
    plan = store(model, quantization, tie=True)
    sources = {record.name: record.source for record in plan.records()}
    assert sources[EMBEDDING] == EMBEDDING
    assert {source for name, source in sources.items() if name.startswith(HEAD)} == {EMBEDDING}
    assert HEAD not in model.graph.initializers


def test_what_nobody_reads_is_removed(traced: ir.Model) -> None:
    traced.graph.register_initializer(ir.Value(name="unused", const_value=ir.tensor([1.0], name="unused")))
    plan = store(traced, FLOAT32)
    assert "unused" not in traced.graph.initializers
    assert not plan.has("unused")


def test_nothing_to_do() -> None:
    x = ir.Value(name="x")
    node = ir.Node("", "Relu", [x])
    model = ir.Model(ir.Graph([x], [], nodes=[node], opset_imports={"": 18}), ir_version=10)
    plan, config = WeightPlan(), graph_making.config()
    passes = (StoreEmbedding(plan, ALL_INT4), StoreLinear(plan, config, ALL_INT4), StoreRemaining(plan, config))
    assert not any(one(model).modified for one in passes)
    assert plan.records() == ()
