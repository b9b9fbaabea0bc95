"""Which stored tensors each node of a graph reads: the graph file and the manifest, put together.

A graph may leave tensors of the weights file alone, read one under another name, or a few rows of it only, so the
manifest's table by itself does not say what a step reads. Numbers of fields are those of onnx.proto3.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from helium_onnx.bundle import Bundle
from helium_onnx.manifest import TensorRecord
from helium_onnx.protobuf import fields, texts
from helium_onnx.runtimes.graph_initializers import readable, stored_initializers

_MODEL_GRAPH, _GRAPH_NODE = 7, 1
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR = 1, 2, 4


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
    stored = {initializer.name: initializer.record for initializer in stored_initializers(bundle, graph)}
    with readable(bundle.graph_path(graph)) as model:
        return tuple(_readings(model, stored))


def _readings(model: bytes, stored: dict[str, TensorRecord]) -> Iterator[Reading]:
    for number, _, begin, end in fields(model, 0, len(model)):
        if number != _MODEL_GRAPH:
            continue
        for field, _, body, stop in fields(model, begin, end):
            if field != _GRAPH_NODE:
                continue
            (operator,) = texts(model, body, stop, _NODE_OPERATOR)
            found = tuple(stored[name] for name in texts(model, body, stop, _NODE_INPUT) if name in stored)
            if found and operator == "Cast":  # of scales in float16, to float32: what else is stored needs none
                (output,), (record,) = texts(model, body, stop, _NODE_OUTPUT), found
                stored[output] = dataclasses.replace(record, dtype="float32", nbytes=4 * math.prod(record.shape))
            elif found:
                yield Reading(operator, found)
