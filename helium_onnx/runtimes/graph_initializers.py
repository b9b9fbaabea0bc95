"""Which stored tensors a graph file refers to: its initializers, read on the bytes (a runtime has no ``onnx``).

Numbers of fields and types are those of onnx.proto3.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from helium_onnx.bundle import Bundle
from helium_onnx.contract import WEIGHTS_FILE
from helium_onnx.errors import BundleError
from helium_onnx.manifest import TensorRecord
from helium_onnx.protobuf import fields, texts
from helium_onnx.runtimes.device_tensors import ELEMENT_TYPES, tensor_bytes

_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_EXTERNAL, _ENTRY_KEY, _ENTRY_VALUE = 1, 2, 8, 13, 1, 2
_DTYPES = {kind.onnx: name for name, kind in ELEMENT_TYPES.items()}


@dataclass(frozen=True)
class StoredInitializer:
    """An initializer whose values are in the weights file: its name, type and shape in the graph, and what is stored.

    A graph may give a stored tensor another shape of as many bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    record: TensorRecord


def stored_initializers(bundle: Bundle, graph: str) -> tuple[StoredInitializer, ...]:
    """Of a graph of the bundle, as ``prefill``, in the file's order. Raises BundleError."""
    with readable(bundle.graph_path(graph)) as model:
        return tuple(_stored(model, bundle.manifest.tensors))


@contextlib.contextmanager
def readable(path: Path) -> Iterator[bytes]:
    """The bytes of a graph file; what goes wrong with them becomes a BundleError."""
    try:
        yield path.read_bytes()
    except (ValueError, KeyError) as error:
        raise BundleError(
            f"what {path} reads cannot be told", found=error, remedy="`helium-onnx verify` tells whether it is whole"
        ) from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read", found=error.strerror) from error


def _stored(model: bytes, records: tuple[TensorRecord, ...]) -> Iterator[StoredInitializer]:
    by_place = {record.offset: record for record in records if record.nbytes}
    for number, _, begin, end in fields(model, 0, len(model)):
        if number != _MODEL_GRAPH:
            continue
        for field, _, body, stop in fields(model, begin, end):
            if field == _GRAPH_INITIALIZER and (place := _place(model, body, stop)):
                (name,) = texts(model, body, stop, _TENSOR_NAME)
                (element,) = _numbers(model, body, stop, _TENSOR_TYPE)
                dtype, shape = _DTYPES[element], tuple(_numbers(model, body, stop, _TENSOR_DIMS))
                if place["location"] != Path(WEIGHTS_FILE).name:
                    raise ValueError(f"{name} lies in {place['location']!r}, not in {Path(WEIGHTS_FILE).name}")
                offset, size = int(place.get("offset", "0")), tensor_bytes(dtype, shape)
                record = by_place.get(offset)
                if record is None or record.nbytes != size:
                    raise ValueError(
                        f"{name} begins at byte {offset}, where the manifest has no tensor of {size} bytes"
                    )
                yield StoredInitializer(name, dtype, shape, record)


def _place(data: bytes, begin: int, end: int) -> dict[str, str]:
    """An initializer's external_data; empty where its values are in the graph file itself."""
    entries = {}
    for number, _, body, stop in fields(data, begin, end):
        if number == _TENSOR_EXTERNAL:
            (key,), (value,) = texts(data, body, stop, _ENTRY_KEY), texts(data, body, stop, _ENTRY_VALUE)
            entries[key] = value
    return entries


def _numbers(data: bytes, begin: int, end: int, number: int) -> list[int]:
    """All values of a field of integers, each with a tag of its own or packed one behind the other."""
    values: list[int] = []
    for field, start, body, stop in fields(data, begin, end):
        if field == number:
            packed = data[start] & 7 == 2
            values += _varints(data[body:stop]) if packed else _varints(data[start + 1 : stop])
    return values


def _varints(data: bytes) -> list[int]:
    values, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            values.append(value)
            value = shift = 0
    return values
