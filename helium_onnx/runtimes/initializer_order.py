"""Put the initializers of a graph file into another order, on the bytes.

A ModelProto's field 7 is its graph, a GraphProto's field 5 an initializer, a TensorProto's field 8 its name.
"""

from __future__ import annotations

from collections.abc import Sequence

from helium_onnx.protobuf import fields

_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_NAME = 7, 5, 8


def initializers_last(model: bytes, names: Sequence[str]) -> bytes:
    """The same ModelProto with the initializers of ``names``, in that order, behind all others.

    ValueError if it is no ModelProto.
    """
    places = {name.encode(): place for place, name in enumerate(names)}
    for number, _, begin, end in fields(model, 0, len(model)):
        if number == _MODEL_GRAPH:
            first: list[bytes] = []
            last: list[tuple[int, bytes]] = []
            for field, start, body, stop in fields(model, begin, end):
                place = places.get(_name(model, body, stop)) if field == _GRAPH_INITIALIZER else None
                if place is None:
                    first.append(model[start:stop])
                else:
                    last.append((place, model[start:stop]))
            moved = [data for _, data in sorted(last, key=lambda pair: pair[0])]
            return b"".join((model[:begin], *first, *moved, model[end:]))  # of the same length: no size changes
    raise ValueError("no graph in the file")


def _name(data: bytes, begin: int, end: int) -> bytes:
    return next((data[a:b] for number, _, a, b in fields(data, begin, end) if number == _TENSOR_NAME), b"")
