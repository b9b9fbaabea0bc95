"""Which stored tensors each node of a graph reads: the graph file and the manifest, put together.

A graph may leave tensors of the weights file alone, read one under another name, or a few rows of it only, so the
manifest's table by itself does not say what a step reads. Numbers of fields are those of onnx.proto3.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from helium_onnx.bundle import Bundle
from helium_onnx.contract import WEIGHTS_FILE
from helium_onnx.errors import BundleError
from helium_onnx.manifest import TensorRecord
from helium_onnx.protobuf import fields, texts

_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER = 7, 1, 5
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR = 1, 2, 4
_TENSOR_NAME, _TENSOR_EXTERNAL, _ENTRY_KEY, _ENTRY_VALUE = 8, 13, 1, 2


@dataclass(frozen=True)
class Reading:
    """A node that reads stored tensors: its operator, as ``MatMulNBits``, and the tensors in the inputs' order.

    What it reads through a ``Cast`` has the type and bytes that ONNX Runtime makes of it once, when it loads the graph.
    """

    operator: str
    tensors: tuple[TensorRecord, ...]

    @property
    def gathers(self) -> bool:
        """Whether it reads single rows (an embedding), not all of its tensors."""
        return "Gather" in self.operator


def readings(bundle: Bundle, graph: str) -> tuple[Reading, ...]:
    """Every node of a graph (as ``prefill``) that reads from the weights file, in its order. Raises BundleError."""
    path = bundle.graph_path(graph)
    try:
        return tuple(_readings(path.read_bytes(), bundle.manifest.tensors))
    except (ValueError, KeyError) as error:
        raise BundleError(
            f"what {path} reads cannot be told", found=error, remedy="`helium-onnx verify` tells whether it is whole"
        ) from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read", found=error.strerror) from error


def _readings(model: bytes, records: tuple[TensorRecord, ...]) -> Iterator[Reading]:
    by_place = {record.offset: record for record in records if record.nbytes}
    stored: dict[str, TensorRecord] = {}
    nodes: list[tuple[str, list[str], list[str]]] = []
    for number, _, begin, end in fields(model, 0, len(model)):
        if number != _MODEL_GRAPH:
            continue
        for field, _, body, stop in fields(model, begin, end):
            if field == _GRAPH_NODE:
                (operator,) = texts(model, body, stop, _NODE_OPERATOR)
                names = texts(model, body, stop, _NODE_INPUT), texts(model, body, stop, _NODE_OUTPUT)
                nodes.append((operator, *names))
            elif field == _GRAPH_INITIALIZER and (place := _place(model, body, stop)):
                (name,) = texts(model, body, stop, _TENSOR_NAME)
                if place["location"] != Path(WEIGHTS_FILE).name:
                    raise ValueError(f"{name} lies in {place['location']!r}, not in {Path(WEIGHTS_FILE).name}")
                record = by_place.get(int(place.get("offset", "0")))
                if record is None:
                    raise ValueError(f"{name} begins at byte {place.get('offset')}, where the manifest has no tensor")
                stored[name] = record
    for operator, inputs, outputs in nodes:
        found = tuple(stored[name] for name in inputs if name in stored)
        if found and operator == "Cast":  # of scales in float16, to float32: what else is stored needs none
            (record,) = found
            stored[outputs[0]] = dataclasses.replace(record, dtype="float32", nbytes=4 * math.prod(record.shape))
        elif found:
            yield Reading(operator, found)


def _place(data: bytes, begin: int, end: int) -> dict[str, str]:
    """An initializer's external_data; empty where its values are in the graph file itself."""
    entries = {}
    for number, _, body, stop in fields(data, begin, end):
        if number == _TENSOR_EXTERNAL:
            (key,), (value,) = texts(data, body, stop, _ENTRY_KEY), texts(data, body, stop, _ENTRY_VALUE)
            entries[key] = value
    return entries
