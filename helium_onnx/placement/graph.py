"""The nodes of a graph file, with the types of what they take, read on the file's bytes: a runtime has no ``onnx``.

Numbers of fields and types are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from helium_onnx.errors import BundleError
from helium_onnx.graph_signature import signature
from helium_onnx.protobuf import fields, texts

_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_VALUE = 7, 1, 5, 13
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 3, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TENSOR = 1, 3, 5
_TENSOR_TYPE, _TENSOR_NAME = 2, 8
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_ELEMENT = 1, 2, 1, 1
_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool",
    10: "float16", 11: "float64", 16: "bfloat16",
}  # fmt: skip

#: Operators whose first output has another type than their first input.
_OUTPUTS = {
    **dict.fromkeys(("Shape", "ArgMax", "Size", "NonZero"), "int64"),
    **dict.fromkeys(("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Not"), "bool"),
}
#: Operators whose output's shape is what their further inputs say.
_SHAPED_BY_VALUES = ("ConstantOfShape", "Expand", "Pad", "Range", "Reshape", "Resize", "Slice", "Tile")
#: Operators whose type is that of another input than the first.
TYPED_BY = {"Where": 1, "GatherBlockQuantized": 2}


@dataclass(frozen=True)
class Node:
    """One node. ``dtype`` is that of the input that chooses its kernel (None: unknown); ``fixed`` says whether the
    shapes of all that it takes are known before a call; ``attributes`` are the integers alone.
    """

    name: str
    operator: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dtype: str | None
    fixed: bool
    attributes: Mapping[str, int] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """As manifests call it: the operator, with its domain where that is not ONNX's own."""
        return f"{self.domain}.{self.operator}" if self.domain else self.operator


def nodes(path: Path) -> list[Node]:
    """The nodes of the graph in ``path``, in the file's order, which is topological.

    Constants, and nodes that take nothing else, are left out: ONNX Runtime computes these when it loads the graph.

    Raises:
        BundleError: the file cannot be read, or holds no graph.
    """
    inputs, _ = signature(path)
    dtypes: dict[str, str | None] = {spec.name: spec.dtype for spec in inputs}
    free = {spec.name for spec in inputs if not all(isinstance(dim, int) for dim in spec.dims)}
    try:
        data = path.read_bytes()
        ((begin, end),) = _all(data, 0, len(data), _MODEL_GRAPH)
        constants: set[str] = set()
        for number, tag, at in ((_GRAPH_INITIALIZER, _TENSOR_NAME, None), (_GRAPH_VALUE, _VALUE_NAME, _VALUE_TYPE)):
            for start, stop in _all(data, begin, end, number):
                (name,) = texts(data, start, stop, tag)
                dtypes[name] = _tensor_type(data, start, stop) if at is None else _value_type(data, start, stop)
                if at is None:
                    constants.add(name)
        found = []
        for start, stop in _all(data, begin, end, _GRAPH_NODE):
            node = _node(data, start, stop, dtypes, free, constants)
            if node.operator == "Constant" or (node.inputs and constants.issuperset(node.inputs)):
                constants.update(node.outputs)
            else:
                found.append(node)
        return found
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{path.name} holds no graph", found=error, remedy="copy or download the bundle again, or export it anew"
        ) from error


def _node(
    data: bytes, begin: int, end: int, dtypes: dict[str, str | None], free: set[str], constants: set[str]
) -> Node:
    """The node at ``begin``; what it gives is noted in ``dtypes`` and, where its shapes are not fixed, ``free``."""
    operator = "".join(texts(data, begin, end, _NODE_OPERATOR))
    inputs, outputs = (tuple(texts(data, begin, end, number)) for number in (_NODE_INPUT, _NODE_OUTPUT))
    attributes: dict[str, int] = {}
    for start, stop in _all(data, begin, end, _NODE_ATTRIBUTE):
        (name,) = texts(data, start, stop, _ATTRIBUTE_NAME)
        for first, last in _all(data, start, stop, _ATTRIBUTE_INT):
            attributes[name] = _number(data, first, last)
        if operator == "Constant":
            for first, last in _all(data, start, stop, _ATTRIBUTE_TENSOR):
                dtypes.update(dict.fromkeys(outputs, _tensor_type(data, first, last)))
    typed = [*inputs[TYPED_BY.get(operator, 0) :], *inputs]
    dtype = next((kind for name in typed if (kind := dtypes.get(name)) is not None), None)
    given = _DTYPES.get(attributes.get("to", 0)) if operator == "Cast" else _OUTPUTS.get(operator, dtype)
    for name in outputs:
        dtypes[name] = dtypes.get(name) or given
    fixed = free.isdisjoint(inputs)
    shaping = inputs[0 if operator in ("ConstantOfShape", "Range") else 1 :] if operator in _SHAPED_BY_VALUES else ()
    # What Shape gives has a fixed shape itself: one number for each dimension.
    if (not fixed and operator != "Shape") or not constants.issuperset(filter(None, shaping)):
        free.update(outputs)
    domain = "".join(texts(data, begin, end, _NODE_DOMAIN))
    return Node(
        "".join(texts(data, begin, end, _NODE_NAME)),
        operator,
        "" if domain == "ai.onnx" else domain,
        tuple(filter(None, inputs)),
        tuple(filter(None, outputs)),
        dtype,
        fixed,
        attributes,
    )


def _tensor_type(data: bytes, begin: int, end: int) -> str | None:
    return next((_DTYPES.get(_number(data, *found)) for found in _all(data, begin, end, _TENSOR_TYPE)), None)


def _value_type(data: bytes, begin: int, end: int) -> str | None:
    for kind in _all(data, begin, end, _VALUE_TYPE):
        for tensor in _all(data, *kind, _TYPE_TENSOR):
            for element in _all(data, *tensor, _TENSOR_ELEMENT):
                return _DTYPES.get(_number(data, *element))
    return None


def _all(data: bytes, begin: int, end: int, number: int) -> Iterator[tuple[int, int]]:
    return ((at, stop) for found, _, at, stop in fields(data, begin, end) if found == number)


def _number(data: bytes, begin: int, end: int) -> int:
    return sum((byte & 0x7F) << (7 * i) for i, byte in enumerate(data[begin:end]))
