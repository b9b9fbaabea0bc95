"""Put the initializers of a graph file into another order, on the bytes: the runtime has no ``onnx`` package.

Only the nesting of protobuf messages is read (https://protobuf.dev/programming-guides/encoding): a ModelProto's field
7 is its graph, a GraphProto's field 5 an initializer, a TensorProto's field 8 its name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_NAME = 7, 5, 8
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5


def initializers_last(model: bytes, names: Collection[str]) -> bytes:
    """The same ModelProto with the initializers of ``names`` behind all others. ValueError if it is no ModelProto."""
    wanted = {name.encode() for name in names}
    for number, _, begin, end in _fields(model, 0, len(model)):
        if number == _MODEL_GRAPH:
            first: list[bytes] = []
            last: list[bytes] = []
            for field, start, body, stop in _fields(model, begin, end):
                moves = field == _GRAPH_INITIALIZER and _name(model, body, stop) in wanted
                (last if moves else first).append(model[start:stop])
            return b"".join((model[:begin], *first, *last, model[end:]))  # of the same length: no size changes
    raise ValueError("no graph in the file")


def _name(data: bytes, begin: int, end: int) -> bytes:
    return next((data[a:b] for number, _, a, b in _fields(data, begin, end) if number == _TENSOR_NAME), b"")


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, start with tag, start of the content, end) of each field of the message in ``data[at:end]``."""
    while at < end:
        start = at
        tag, at = _varint(data, at, end)
        kind = tag & 7
        if kind == _VARINT:
            stop = _varint(data, at, end)[1]
        elif kind == _BYTES:
            size, at = _varint(data, at, end)
            stop = at + size
        elif kind in (_FIXED_64, _FIXED_32):
            stop = at + (8 if kind == _FIXED_64 else 4)
        else:
            raise ValueError(f"no protobuf at byte {start}")
        if stop > end:
            raise ValueError(f"a field at byte {start} that ends behind its message")
        yield tag >> 3, start, at, stop
        at = stop


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError(f"no number at byte {at}")
