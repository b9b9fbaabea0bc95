"""safetensors files: tensors that fill the file exactly, or a WeightsError, whatever the bytes."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helium_onnx.errors import WeightsError
from helium_onnx.safetensors_file import read_header


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.write_checkpoint(tmp_path / "helium")


def entry(begin: object, end: object, shape: object = (4,), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ({"a": entry(0, 16), "b": entry(16, 32)}, None),
        ({"a": entry(0, 16), "e": entry(16, 16, (0, 3)), "b": entry(16, 32)}, None),
        ({"a": entry(0, 16), "b": entry(0, 16)}, "'b' at byte"),
        ({"a": entry(0, 16), "b": entry(8, 24)}, "'b' at byte"),
        ({"b": entry(16, 32)}, "'b' at byte"),
        ({"a": entry(0, 16)}, "longer"),
        ({"a": entry(0, 64, (16,))}, "truncated"),
        ({"a": entry(0, 32)}, "'a' in 32 bytes"),
        ({"a": entry(16, 0)}, "'a' from 16"),
        ({"a": entry(-16, 0)}, "'a' from -16"),
        ({"a": entry(0, 32, (-8,))}, "of shape [-8]"),
        ({"a": entry(0, 32, (8.0,))}, "of shape [8.0]"),
        ({"a": entry(0, 32, (True,) * 3)}, "of shape [True"),
        ({"a": entry(0, 32, (2**63,))}, "of shape"),
        ({"a": entry(0, 32, (1,) * 9)}, "of shape"),
        ({"a": entry(0, 32, (2**62, 2**62))}, "'a' in 32 bytes"),
        ({"a": entry(0, 32, "8")}, "'a': {"),
        ({"a": entry(0, 32, (8,), "Q4")}, "'a': {"),
        ({"a": entry(0, 32, (8,), ["F32"])}, "'a': {"),
        ({"a": entry(0, 32.0, (8,))}, "'a': {"),
        ({"a": entry(0, 10**400, (8,))}, "'a' in"),
        ({"a": {"dtype": "F32", "shape": [8]}}, "'a': {"),
        ({"a": None}, "'a': nothing"),
        ({}, "longer"),
    ],
)
def test_headers_with_32_bytes_of_data(tmp_path: Path, header: dict[str, object], found: str | None) -> None:
    path = tmp_path / "model.safetensors"
    tiny.write_safetensors(path, header, bytes(32))
    if found is None:
        assert list(read_header(path)) == list(header)
        return
    with pytest.raises(WeightsError) as caught:
        read_header(path)
    assert found in str(caught.value.found)
    assert caught.value.expected
    assert str(path) in caught.value.what


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "0 bytes"),
        (b"\x00" * 7, "7 bytes"),
        (b"\x00" * 8, "Expecting value"),
        (b"\xff" * 16, "a header of 18,446,744,073,709,551,615 bytes in a file of 16"),
        (b"\x03" + b"\x00" * 7 + b"[1]", "not an object"),
        (b"\x02" + b"\x00" * 7 + b"\xff\xfe", "utf-8"),
        (b"\x0f" + b"\x00" * 7 + b'{"a":1, "a": 1}', "twice"),
    ],
)
def test_bytes_that_are_no_safetensors(tmp_path: Path, data: bytes, found: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(WeightsError) as caught:
        read_header(path)
    assert found in str(caught.value.found)


def test_a_header_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((200_000_000).to_bytes(8, "little"))
    os.truncate(path, 300_000_000)  # a hole: takes no disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match="100,000,000"):
        read_header(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


NUMBERS = st.integers(-2, 40) | st.integers() | st.none() | st.floats()
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "I8", "X"]) | NUMBERS,
        "shape": st.lists(NUMBERS, max_size=3) | NUMBERS,
        "data_offsets": st.lists(NUMBERS, max_size=3) | NUMBERS,
    },
)
HEADERS = st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), ENTRIES | NUMBERS, max_size=3)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=64)
    | st.tuples(HEADERS, st.binary(max_size=40)).map(
        lambda pair: len(json.dumps(pair[0])).to_bytes(8, "little") + json.dumps(pair[0]).encode() + pair[1]
    )
)
def test_any_bytes_are_tensors_inside_the_file_or_a_weights_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "fuzz.safetensors"
    path.write_bytes(data)
    try:
        tensors = read_header(path)
    except WeightsError:
        return
    assert all(8 <= info.offset <= info.offset + info.nbytes <= len(data) for info in tensors.values())
    assert 8 + int.from_bytes(data[:8], "little") + sum(info.nbytes for info in tensors.values()) == len(data)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 3000), value=st.integers(0, 255))
def test_a_flipped_byte_of_a_real_header(folder: Path, at: int, value: int) -> None:
    path = folder / "flipped.safetensors"
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[at] = value
    path.write_bytes(data)
    try:
        tensors = read_header(path)
    except WeightsError:
        return
    assert sum(info.nbytes for info in tensors.values()) < len(data)
