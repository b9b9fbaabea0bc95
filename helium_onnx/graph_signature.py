"""What a graph file takes and gives, read on its bytes: for graphs that no kernel of this machine can run.

A runtime has no ``onnx`` package. Numbers of fields and types are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from helium_onnx.contract import TensorSpec
from helium_onnx.errors import BundleError
from helium_onnx.protobuf import fields

_MODEL_GRAPH, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 7, 5, 11, 12
_TENSOR_NAME = 8
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_ELEMENT, _TENSOR_SHAPE = 1, 2, 1, 1, 2
_SHAPE_DIMENSION, _DIMENSION_VALUE, _DIMENSION_SYMBOL = 1, 1, 2
_DTYPES = {1: "float32", 3: "int8", 6: "int32", 7: "int64", 10: "float16", 16: "bfloat16"}

#: Where a message lies: from its first byte to the one behind its last.
_Range = tuple[int, int]


def signature(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of the graph in ``path``, but for inputs that may be left out (adapters').

    Raises:
        BundleError: the file cannot be read, or holds no graph.
    """
    try:
        data = path.read_bytes()
        (graph,) = _messages(data, (0, len(data)), _MODEL_GRAPH)
        inputs, outputs = (
            tuple(_spec(data, value) for value in _messages(data, graph, number))
            for number in (_GRAPH_INPUT, _GRAPH_OUTPUT)
        )
        initializers = _messages(data, graph, _GRAPH_INITIALIZER)
        given = {
            data[slice(*name)].decode() for tensor in initializers for name in _messages(data, tensor, _TENSOR_NAME)
        }
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise BundleError(
            f"{path.name} holds no graph", found=error, remedy="copy or download the bundle again, or export it anew"
        ) from error
    return tuple(spec for spec in inputs if spec.name not in given), outputs


def _spec(data: bytes, value: _Range) -> TensorSpec:
    name = b"".join(data[begin:end] for begin, end in _messages(data, value, _VALUE_NAME)).decode()
    (kind,) = _messages(data, value, _VALUE_TYPE)
    (tensor,) = _messages(data, kind, _TYPE_TENSOR)
    (element,) = _messages(data, tensor, _TENSOR_ELEMENT)
    number = _number(data, element)
    dims = [
        _dimension(data, dimension)
        for shape in _messages(data, tensor, _TENSOR_SHAPE)
        for dimension in _messages(data, shape, _SHAPE_DIMENSION)
    ]
    return TensorSpec(name, _DTYPES.get(number, f"type {number}"), tuple(dims))


def _dimension(data: bytes, dimension: _Range) -> str | int:
    for symbol in _messages(data, dimension, _DIMENSION_SYMBOL):
        return data[slice(*symbol)].decode()
    (value,) = _messages(data, dimension, _DIMENSION_VALUE)
    return _number(data, value)


def _messages(data: bytes, where: _Range, number: int) -> Iterator[_Range]:
    """Where the contents of all fields ``number`` of the message at ``where`` lie."""
    return ((begin, end) for field, _, begin, end in fields(data, *where) if field == number)


def _number(data: bytes, where: _Range) -> int:
    return sum((byte & 0x7F) << (7 * i) for i, byte in enumerate(data[slice(*where)]))
