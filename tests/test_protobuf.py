"""The nesting of messages, against ``onnx``, and bytes that are no message."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helium_onnx.protobuf import fields, texts

NODE = onnx.helper.make_node("MatMulNBits", ["a", "b", "é"], ["y"], name="n", domain="com.microsoft", K=300, bits=4)
DATA = NODE.SerializeToString()


def test_fields_cover_the_message() -> None:
    found = list(fields(DATA, 0, len(DATA)))
    assert [start for _, start, _, _ in found] == [0, *(end for *_, end in found[:-1])]
    assert found[-1][3] == len(DATA)
    assert sorted({number for number, *_ in found}) == [1, 2, 3, 4, 5, 7]


def test_texts() -> None:
    assert texts(DATA, 0, len(DATA), 1) == ["a", "b", "é"]
    assert texts(DATA, 0, len(DATA), 4) == ["MatMulNBits"]
    assert texts(DATA, 0, len(DATA), 99) == []


@pytest.mark.parametrize("data", [b"\x0a\x05ab", b"\x0b", b"\x80", b"\x0d\x00", b"\xff" * 12])
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"no protobuf|ends behind|no number"):
        list(fields(data, 0, len(data)))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        found = list(fields(data, 0, len(data)))
    except ValueError:
        return
    assert sum(end - start for _, start, _, end in found) == len(data)
