"""Which cases a benchmark measures, and which it leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from helium_onnx.benchmark.cases import FULL, QUICK, Case, Decode, LeftOut, Prefill, Preset, plan, preset
from helium_onnx.errors import UsageError

ROOM: dict[str, Any] = {"context_length": 4096, "cache_token_bytes": 1000, "available_bytes": None}


def asked(**changes: Any) -> Preset:
    nothing: dict[str, Any] = dict.fromkeys(("prompt", "past", "batch", "rounds"))
    return preset(**{"quick": False, **nothing, **changes})


def names(cases: Sequence[Case | LeftOut]) -> list[str]:
    return [case.case if isinstance(case, LeftOut) else str(case) for case in cases]


def test_what_is_not_said_is_the_preset() -> None:
    assert asked() == FULL
    assert asked(quick=True) == QUICK
    changed = asked(quick=True, past=[64], rounds=7)
    assert (changed.past, changed.rounds, changed.prompt, changed.steps) == ((64,), 7, QUICK.prompt, QUICK.steps)


def test_the_full_plan() -> None:
    cases, left_out = plan(FULL, **ROOM)
    assert cases == (
        Prefill(32), Prefill(128), Prefill(512), Prefill(2048),
        Decode(0, 1), Decode(512, 1), Decode(2048, 1), Decode(512, 4), Decode(512, 16),
    )  # fmt: skip
    assert left_out == ()


def test_numbers_are_put_in_order_once() -> None:
    one = asked(prompt=[128, 32, 128], past=[0], batch=[4, 2])
    assert one.prompt == (32, 128)
    assert plan(one, **ROOM)[0] == (Prefill(32), Prefill(128), Decode(0, 2), Decode(0, 4))


def test_what_exceeds_the_context_is_left_out_and_said() -> None:
    cases, left_out = plan(FULL, **{**ROOM, "context_length": 2048})
    assert Prefill(2048) in cases
    assert names(left_out) == ["decode at past 2048, batch 1"]
    assert left_out[0].reason == f"needs {2048 + FULL.steps:,} tokens; the model's context is 2,048"
    # The batches go to the middle of those that fit.
    assert Decode(512, 16) in cases
    cases, left_out = plan(FULL, **{**ROOM, "context_length": 100})
    assert cases == (Prefill(32), Decode(0, 1), Decode(0, 4), Decode(0, 16))
    assert len(left_out) == 5


def test_what_exceeds_the_memory_is_left_out_and_said() -> None:
    available = 2 * 4 * (512 + FULL.steps) * 1000  # a batch of 4 takes half of it
    cases, left_out = plan(FULL, **{**ROOM, "available_bytes": available})
    assert Decode(512, 4) in cases
    assert names(left_out) == ["decode at past 512, batch 16"]
    assert "GB for keys and values" in left_out[0].reason


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": [0]}, "prompt is out of range"),
        ({"prompt": []}, "no number"),
        ({"past": [-1]}, "past is out of range"),
        ({"batch": [0]}, "batch is out of range"),
        ({"batch": [True]}, "True"),
        ({"batch": [1.5]}, "1.5"),
        ({"rounds": 0}, "number of rounds"),
        ({"rounds": 1001}, "1 to 1000"),
    ],
)
def test_bad_values(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        asked(**changes)


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(UsageError, match="no case is left") as caught:
        plan(asked(prompt=[100], past=[100]), **{**ROOM, "context_length": 64})
    assert "prefill of 100 tokens: needs 100 tokens" in str(caught.value)
