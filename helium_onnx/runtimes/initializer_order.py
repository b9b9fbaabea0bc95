"""Put the initializers of a graph file into another order, on the bytes.

A ModelProto's field 7 is its graph, a GraphProto's field 5 an initializer, a TensorProto's field 8 its name.
"""

from __future__ import annotations

from collections.abc import Collection

from helium_onnx.protobuf import fields

_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_NAME = 7, 5, 8


def initializers_last(model: bytes, names: Collection[str]) -> bytes:
    """The same ModelProto with the initializers of ``names`` behind all others. ValueError if it is no ModelProto."""
    wanted = {name.encode() for name in names}
    for number, _, begin, end in fields(model, 0, len(model)):
        if number == _MODEL_GRAPH:
            first: list[bytes] = []
            last: list[bytes] = []
            for field, start, body, stop in fields(model, begin, end):
                moves = field == _GRAPH_INITIALIZER and _name(model, body, stop) in wanted
                (last if moves else first).append(model[start:stop])
            return b"".join((model[:begin], *first, *last, model[end:]))  # of the same length: no size changes
    raise ValueError("no graph in the file")


def _name(data: bytes, begin: int, end: int) -> bytes:
    return next((data[a:b] for number, _, a, b in fields(data, begin, end) if number == _TENSOR_NAME), b"")
