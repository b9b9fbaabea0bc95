"""The order of a graph file's initializers, changed on its bytes."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helium_onnx.runtimes.initializer_order import initializers_last


def test_the_named_ones_go_last_and_nothing_else_changes(sample_bundle: Path) -> None:
    data = (sample_bundle / "onnx" / "prefill.onnx").read_bytes()
    before = onnx.load_from_string(data)
    names = [tensor.name for tensor in before.graph.initializer]
    chosen = names[3::5]
    after = onnx.load_from_string(initializers_last(data, chosen))
    assert [t.name for t in after.graph.initializer] == [n for n in names if n not in chosen] + chosen
    by_name = {tensor.name: tensor for tensor in before.graph.initializer}
    assert all(tensor == by_name[tensor.name] for tensor in after.graph.initializer)
    del before.graph.initializer[:], after.graph.initializer[:]
    assert before == after


def test_no_names_no_change(sample_bundle: Path) -> None:
    data = (sample_bundle / "onnx" / "prefill.onnx").read_bytes()
    assert initializers_last(data, []) == data
    assert initializers_last(data, ["input_ids", "nothing"]) == data


@pytest.mark.parametrize("data", [b"", b"\x3a", b"\x3a\x7f", b"\xff" * 20, b"\x08\x01", b"\x3b\x00", b"\x3d\x00"])
def test_what_is_no_model(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"byte|graph"):
        initializers_last(data, ["a"])


@given(st.binary(max_size=60))
def test_any_bytes_are_reordered_or_a_value_error(data: bytes) -> None:
    try:
        result = initializers_last(data, ["", "a"])
    except ValueError:
        return
    assert sorted(result) == sorted(data)
