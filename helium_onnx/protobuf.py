"""The nesting of protobuf messages, read on the bytes: a runtime has no ``onnx`` package.

Source: https://protobuf.dev/programming-guides/encoding. The numbers of fields are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5


def fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, start with tag, start of the content, end) of each field of the message in ``data[at:end]``.

    Raises ValueError where that is no message.
    """
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


def texts(data: bytes, at: int, end: int, number: int) -> list[str]:
    """All values of a field of strings, in their order. Raises ValueError."""
    return [data[begin:stop].decode() for field, _, begin, stop in fields(data, at, end) if field == number]


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError(f"no number at byte {at}")
