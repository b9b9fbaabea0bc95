"""LowerLinearNative: the products of one input become one node over the same weights, and silu a part of the next."""

from __future__ import annotations

import graph_making
import kernel_graphs
import numpy as np
import onnx_ir as ir
import pytest
from kernel_graphs import Array

from helium_onnx.exporter.passes.lower_linear_native import LowerLinearNative
from helium_onnx.exporter.passes.rewriting import KERNELS, MICROSOFT

#: What comes out is run over our own kernels.
runs = pytest.mark.usefixtures("native_kernels")
LINEAR = f"{KERNELS}.QuantizedLinear"
#: Of the largest number. Both round activations to int8, in blocks of their own, as steps of 1/127.
TOLERANCE = 2e-2
WIDTH, TOKENS = 64, 5
DIMS: list[int | str] = ["b", "s", WIDTH]


class Nodes:
    """A graph over ``x`` and ``z`` as it grows, with random weights."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.values, self.nodes, self.weights = graph_making.named("x", "z"), [], []  # type: ignore[var-annotated]

    def node(self, op_type: str, *inputs: ir.Value, domain: str = "", **attributes: int) -> ir.Value:
        made = ir.Node(domain, op_type, inputs, attributes=ir.convenience.convert_attributes(attributes))
        self.nodes.append(made)
        made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        return made.outputs[0]

    def matmul(
        self, x: ir.Value, rows: int, columns: int = WIDTH, bits: int = 4, zeros: bool = True, half: bool = False
    ) -> ir.Value:
        shapes: list[tuple[int, ...]] = [(rows, columns // 32, 4 * bits)]
        arrays: list[Array] = [self.rng.integers(0, 256, shapes[0], np.uint8)]
        arrays.append(self.rng.uniform(0.01, 0.1, (rows, columns // 32)).astype(np.float16 if half else np.float32))
        if zeros:
            arrays.append(self.rng.integers(0, 256, (rows, (columns // 32 * bits + 7) // 8), np.uint8))
        stored = []
        for array in arrays:
            name = f"w{len(self.weights)}"
            tensor = ir.tensor(array, name=name)
            stored.append(ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor))
            self.weights.append(stored[-1])
        if half:
            stored[1] = self.node("Cast", stored[1], to=int(ir.DataType.FLOAT))
        return self.node(
            "MatMulNBits", x, *stored, domain=MICROSOFT, K=columns, N=rows, bits=bits, block_size=32, accuracy_level=4
        )

    def model(self, **outputs: ir.Value) -> ir.Model:
        made = graph_making.model({"x": DIMS, "z": DIMS}, self.nodes, outputs, self.values)
        for value in self.weights:
            made.graph.register_initializer(value)
        for value in outputs.values():
            value.shape = ir.Shape(["b", "s", None])
        made.graph.opset_imports[KERNELS] = 1
        return made


def run(model: ir.Model) -> list[Array]:
    rng = np.random.default_rng(1)
    feed = {name: rng.standard_normal((2, TOKENS, WIDTH)).astype(np.float32) for name in ("x", "z")}
    del model.graph.opset_imports["helium_onnx"]
    session = kernel_graphs.session(ir.serde.serialize_model(model).SerializeToString())
    result: list[Array] = session.run(None, feed)
    return result


def lowered(model: ir.Model, last_position: bool = False) -> ir.Model:
    clone = model.clone()
    assert LowerLinearNative(last_position=last_position)(clone).modified
    return clone


def assert_close(found: Array, expected: Array) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def linears(model: ir.Model) -> list[dict[str, object]]:
    """The attributes of each QuantizedLinear."""
    return [{name: a.value for name, a in n.attributes.items()} for n in model.graph if n.op_type == "QuantizedLinear"]


def test_one_alone() -> None:
    nodes = Nodes()
    model = nodes.model(y=nodes.matmul(nodes.values["x"], 48))
    after = lowered(model)
    assert graph_making.operators(after) == {LINEAR: 1}
    assert linears(after) == [
        {"columns": 64, "rows": (48,), "bits": (4,), "block_size": (32,), "has_zeros": (1,), "gated": 0, "last": 0}
    ]


def test_scales_in_float16_are_read_as_they_are() -> None:
    nodes = Nodes()
    x, _ = nodes.values.values()
    model = nodes.model(y=nodes.matmul(x, 40, half=True), logits=nodes.matmul(x, 48, half=True))
    after = lowered(model)
    assert graph_making.operators(after) == {"helium_onnx.kernels.QuantizedLinear": 2}
    for found, expected in zip(run(after), run(model), strict=True):
        assert_close(found, expected)


def projections(z: bool = False, axis: int = -1) -> ir.Model:
    """Query, key and value, each stored otherwise."""
    nodes = Nodes()
    x = nodes.values["x"]
    parts = [
        nodes.matmul(x, 64),
        nodes.matmul(nodes.values["z"] if z else x, 16, bits=8, zeros=False),
        nodes.matmul(x, 16 if axis == -1 else 64, bits=8),
    ]
    return nodes.model(y=nodes.node("Concat", *(parts if axis == -1 else parts[::2]), axis=axis))


@runs
def test_projections_of_one_input() -> None:
    model = projections()
    after = lowered(model)
    assert graph_making.operators(after) == {LINEAR: 1}
    (attributes,) = linears(after)
    assert (attributes["rows"], attributes["bits"], attributes["has_zeros"]) == ((64, 16, 16), (4, 8, 8), (1, 0, 1))
    assert_close(run(after)[0], run(model)[0])


@runs
@pytest.mark.parametrize(("z", "axis"), [(True, -1), (False, 1)])
def test_products_that_do_not_stand_beside_each_other(z: bool, axis: int) -> None:
    """Of two inputs, or on another axis."""
    model = projections(z, axis)
    after = lowered(model)
    assert graph_making.operators(after) == {LINEAR: 3, "Concat": 1}
    assert_close(run(after)[0], run(model)[0])


def mlp(order: int = 0, *, z: bool = False, activation: str = "Sigmoid", read_again: bool = False) -> ir.Model:
    nodes = Nodes()
    x = nodes.values["x"]
    gate, up = nodes.matmul(x, 96), nodes.matmul(nodes.values["z"] if z else x, 96, bits=8, zeros=False)
    pair = [gate, nodes.node(activation, gate)]
    silu = nodes.node("Mul", *(pair[::-1] if order & 1 else pair))
    product = nodes.node("Mul", *([up, silu] if order & 2 else [silu, up]))
    outputs = {"y": nodes.matmul(product, WIDTH, 96)}
    if read_again:
        outputs["other"] = nodes.node("Neg", up)
    return nodes.model(**outputs)


@runs
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_gate_and_up(order: int) -> None:
    model = mlp(order)
    after = lowered(model)
    assert graph_making.operators(after) == {LINEAR: 2}
    both, down = linears(after)
    assert (both["rows"], both["bits"], both["gated"]) == ((96, 96), (4, 8), 0)
    assert (down["columns"], down["rows"], down["gated"]) == (96, (64,), 1)
    assert_close(run(after)[0], run(model)[0])


@runs
@pytest.mark.parametrize(
    ("changes", "remaining"),
    [
        ({"z": True}, {LINEAR: 3, "Mul": 2, "Sigmoid": 1}),
        ({"activation": "Tanh"}, {LINEAR: 3, "Mul": 2, "Tanh": 1}),
        ({"read_again": True}, {LINEAR: 3, "Neg": 1}),
    ],
)
def test_another_activation_or_reader(
    changes: dict[str, bool],
    remaining: dict[str, int],
) -> None:
    """Products of two inputs, and what is no silu, stay; a product that another node reads stays for that node."""
    model = mlp(**changes)  # type: ignore[arg-type]
    after = lowered(model)
    assert graph_making.operators(after) == remaining
    for found, expected in zip(run(after), run(model), strict=True):
        assert_close(found, expected)


@runs
@pytest.mark.parametrize("last_position", [False, True])
def test_the_head(last_position: bool) -> None:
    nodes = Nodes()
    model = nodes.model(logits=nodes.matmul(nodes.values["x"], 320), other=nodes.matmul(nodes.values["x"], 64))
    after = lowered(model, last_position)
    assert [attributes["last"] for attributes in linears(after)] == [int(last_position), 0]
    logits, other = after.graph.outputs
    assert (logits.name, other.name) == ("logits", "other")
    assert logits.shape is not None
    assert logits.shape[1] == (1 if last_position else "s")
    expected, (found, _) = run(model)[0], run(after)
    assert_close(found, expected[:, -1:] if last_position else expected)


def test_weights_are_the_same_tensors() -> None:
    model = projections()
    after = lowered(model)
    assert list(after.graph.initializers) == list(model.graph.initializers)
    (node,) = after.graph
    assert [value.name for value in node.inputs if value is not None] == ["x", *model.graph.initializers]


def test_nothing_to_do(traced: ir.Model) -> None:
    """Float32 matrices are not ours."""
    before = graph_making.operators(traced)
    assert not LowerLinearNative(last_position=True)(traced).modified
    assert graph_making.operators(traced) == before
