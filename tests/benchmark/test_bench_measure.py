"""Rounds over a session: what is called, what is counted, and that a past is really there."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import tiny
from fake_session import FakePast, FakeSession

import helium_onnx
from helium_onnx.benchmark.cases import Case, Decode, Prefill
from helium_onnx.benchmark.measure import Meter, measure_rounds
from helium_onnx.errors import ResourceError
from helium_onnx.progress import ProgressEvent, silent

CASES: list[Case] = [Prefill(8), Decode(0, 1), Decode(5, 3)]


def rounds_of(session: FakeSession, rounds: int = 3, steps: int = 2) -> dict[Case, list[float]]:
    ticks = itertools.count()
    return measure_rounds(
        session, CASES, rounds=rounds, steps=steps, progress=silent, clock=lambda: float(next(ticks))
    )[0]


def test_every_case_is_measured_in_every_round() -> None:
    samples = rounds_of(FakeSession())
    assert {case: len(times) for case, times in samples.items()} == {CASES[0]: 3, CASES[1]: 6, CASES[2]: 6}
    assert {time for times in samples.values() for time in times} == {1.0}  # a tick of the clock each


def test_rounds_are_shuffled_and_each_time_alike() -> None:
    orders = []
    for _ in range(2):
        session = FakeSession()
        rounds_of(session, rounds=8)
        orders.append([phase if phase == "prefill" else len(ids) for phase, ids in session.calls])
    assert orders[0] == orders[1]
    calls = orders[0]
    prompts = [index for index, call in enumerate(calls) if call == "prefill"]
    assert len({b - a for a, b in itertools.pairwise(prompts)}) > 1


def test_lengths_of_prompts_and_pasts() -> None:
    session, lengths = FakeSession(), []
    run = session.run

    def spy(phase: str, ids: np.ndarray, past: FakePast) -> np.ndarray:
        lengths.append((phase, ids.shape, past.lengths.tolist()))
        return run(phase, ids, past)  # type: ignore[arg-type]

    session.run = spy  # type: ignore[method-assign, assignment]
    meter = Meter(session, steps=2)
    assert len(meter.measure(Prefill(8))) == 1
    assert lengths == [("prefill", (1, 8), [0])]
    lengths.clear()
    assert len(meter.measure(Decode(5, 3))) == 2
    # Four tokens are computed once, for all rows; one step is not counted; then two from past 5 on.
    assert lengths == [
        ("prefill", (1, 4), [0]),
        ("decode", (3, 1), [4, 4, 4]),
        ("decode", (3, 1), [5, 5, 5]),
        ("decode", (3, 1), [6, 6, 6]),
    ]
    lengths.clear()
    meter.measure(Decode(0, 1))
    assert lengths == [("decode", (1, 1), [0]), ("decode", (1, 1), [0]), ("decode", (1, 1), [1])]


def test_a_case_without_memory_is_left_out() -> None:
    session = FakeSession()
    new_past = session.new_past

    def limited(rows: int) -> FakePast:
        if rows == 3:
            raise ResourceError("no memory for the keys and values", found="9 GB needed")
        return new_past(rows)

    session.new_past = limited  # type: ignore[method-assign]
    samples, left_out = measure_rounds(session, CASES, rounds=1, steps=2, progress=silent)
    assert set(samples) == {CASES[0], CASES[1]}
    assert [(left.case, left.reason) for left in left_out] == [
        ("decode at past 5, batch 3", "no memory for the keys and values: 9 GB needed")
    ]


def test_progress_names_the_round() -> None:
    said: list[ProgressEvent] = []
    measure_rounds(FakeSession(), CASES, rounds=2, steps=1, progress=said.append)
    assert [event.item for event in said[:4]] == [*(f"warming up: {case}" for case in CASES), "round 1 of 2"]
    assert said[4].item.startswith("round 2 of 2, about")


@pytest.mark.parametrize("recipe", ["cpu-fp32", "cpu-int4-fast", "portable-fp32"])
def test_a_past_holds_keys_and_values_in_every_slot(recipe: str, tmp_path: Path) -> None:
    """Pages that nobody has written would all be one page of zeros, and reading them would cost nothing."""
    helium_onnx.export(tiny.write_checkpoint(tmp_path / "checkpoint"), tmp_path / "out", recipe=recipe)
    with helium_onnx.load(tmp_path / "out", cache=False) as model:
        meter = Meter(model.session, steps=3)
        past = meter.place(2, 200)  # more than are computed
        assert past.lengths.tolist() == [200, 200]
        for index in range(2):
            for tensor in past.row(index).read_slots(0, 200):
                assert tensor.shape == (2, 200, 16)
                assert tensor.any(axis=(0, 2)).all()
        for case in (Decode(200, 2), Decode(0, 1), Decode(100, 2), Prefill(256)):
            seconds = meter.measure(case)
            assert all(second > 0 for second in seconds)
