"""Greedy steps in flight over a GPU, run without one (host_device.py): those one by one, to the bit."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from cuda_sessions import TEXTS, Ids, Opening, prefilled, step_by_step
from numpy.typing import NDArray

from helium_onnx.bundle import Bundle
from helium_onnx.generation.model import LanguageModel
from helium_onnx.loading import load_tokenizer
from helium_onnx.runtimes.cuda_session import STEPS_IN_FLIGHT, CudaSession


@pytest.mark.parametrize("lazy", [False, True])
def test_greedy_steps_in_flight_are_those_one_by_one(opening: Opening, lazy: bool) -> None:
    session, _ = opening(lazy=lazy)
    past, ids = prefilled(session, TEXTS[:1])
    expected = step_by_step(session, past, ids, 30)
    past, ids = prefilled(session, TEXTS[:1])
    found = []
    with contextlib.closing(session.greedy(ids, past)) as steps:
        for token_ids in steps:
            assert past.lengths.tolist() == [20 + len(found) + 1]
            found.append(token_ids.tolist())
            if len(found) == 30:
                break
    assert found == expected
    assert len({token for (token,) in found}) > 5  # not one token over and over, in which mistakes would not show
    assert past.lengths.tolist() == [50]
    # What ran further is as if it had not been.
    np.testing.assert_array_equal(
        session.run("decode", np.array([found[-1]]), past).copy(), _after(session, TEXTS[0], ids, found)
    )


def _after(session: CudaSession, text: Ids, first: Ids, found: list[list[int]]) -> NDArray[np.float32]:
    """The logits after the same tokens, in a past that no step ran ahead in."""
    past = session.new_past(1)
    session.run("prefill", text, past)
    for token in [first[0].tolist(), *found]:
        logits = session.run("decode", np.array([token]), past)
    return logits.copy()


def test_greedy_is_never_further_ahead_than_it_should(opening: Opening) -> None:
    session, device = opening()
    past, ids = prefilled(session, TEXTS[:1])
    decode = device.sessions["decode"]
    steps = session.greedy(ids, past)
    for count in range(1, 6):
        next(steps)
        # Captured by then, and the steps: those that were yielded, and those behind them.
        assert len(decode.graph_ids) - 3 == count + STEPS_IN_FLIGHT - 1
        assert device.driver.waiting(device.stream)  # the host did not wait for those
    steps.close()
    assert not device.driver.waiting(device.stream)
    assert decode.replays == 5 + STEPS_IN_FLIGHT - 1


@pytest.mark.parametrize("room", [0, 1, 2, 3, 7])
def test_greedy_ends_with_the_context(opening: Opening, room: int) -> None:
    session, device = opening(context_length=20 + room)
    past, ids = prefilled(session, TEXTS[:1])
    held = list(session.greedy(ids, past))  # arrays that no later step may write to
    found = [token_ids.tolist() for token_ids in held]
    assert len(found) == room and past.lengths.tolist() == [20 + room]
    assert not device.driver.waiting(device.stream)
    past, ids = prefilled(session, TEXTS[:1])
    assert step_by_step(session, past, ids, room) == found
    with pytest.raises(AssertionError, match="the past is full"):
        session.run("decode", ids, past)


@pytest.mark.parametrize("greedy", [False, True])
def test_rows_of_a_batch_are_as_alone(opening: Opening, greedy: bool) -> None:
    session, _ = opening()

    def run(texts: list[Ids]) -> list[list[int]]:
        past, ids = prefilled(session, texts)
        if not greedy:
            return step_by_step(session, past, ids, 12)
        with contextlib.closing(session.greedy(ids, past)) as steps:
            return [token_ids.tolist() for token_ids, _ in zip(steps, range(12), strict=False)]

    together = np.array(run(TEXTS))
    for row, text in enumerate(TEXTS):
        assert together[:, row : row + 1].tolist() == run([text])
    assert len({tuple(column) for column in together.T.tolist()}) == len(TEXTS)


def test_a_row_that_is_held_back_does_not_disturb_the_others(opening: Opening) -> None:
    """As the loop does with a row that has ended: here at the context's end, where it could not go on."""
    session, _ = opening(context_length=45)
    past, ids = prefilled(session, [TEXTS[0], TEXTS[2]])
    expected = [step[0] for step in step_by_step(session, past, ids, 4)]
    past, ids = prefilled(session, [TEXTS[0]])
    expected = [step[0] for step in step_by_step(session, past, ids, 25)]
    past, ids = prefilled(session, [TEXTS[0], TEXTS[2]])
    found = []
    for token_ids in session.greedy(ids, past):
        found.append(int(token_ids[0]))
        past.lengths[1] = 43
    assert found == expected
    assert past.lengths.tolist() == [45, 43]


def test_a_model_generates_greedily_and_may_be_interrupted(cuda_bundle: Bundle, opening: Opening) -> None:
    session, device = opening()
    model = LanguageModel(session, load_tokenizer(cuda_bundle))
    whole = model.generate(["Once", "upon a time"], max_new_tokens=30, ignore_eos=True, logprobs=0)  # on the host
    greedy = model.generate(["Once", "upon a time"], max_new_tokens=30, ignore_eos=True)
    assert [row.token_ids for row in greedy] == [row.token_ids for row in whole]
    stream = model.stream("upon a time", max_new_tokens=30, ignore_eos=True)
    next(stream)
    stream.close()
    assert stream.result[0].token_ids == whole[1].token_ids[: len(stream.result[0].token_ids)]
    wait, calls = device.driver.wait, 0

    def interrupted(event: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        wait(event)

    device.driver.wait = interrupted  # type: ignore[method-assign]
    result = model.generate("upon a time", max_new_tokens=30, ignore_eos=True)
    assert result[0].finish_reason == "interrupted"
    assert result[0].token_ids == whole[1].token_ids[:5]
    again = model.generate("upon a time", max_new_tokens=30, ignore_eos=True)
    assert again[0].token_ids == whole[1].token_ids


def test_a_prefill_is_cut_at_multiples_of_the_chunk(opening: Opening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaSession, "exact_split", 16)
    session, device = opening()
    past = session.new_past(1)
    whole = session.run("prefill", TEXTS[2], past).copy()
    assert len(device.sessions["prefill"].graph_ids) == 1 + 3  # the one at loading, then 16, 16, 9
    past = session.new_past(1)
    session.run("prefill", TEXTS[2][:, :16], past)
    np.testing.assert_array_equal(session.run("prefill", TEXTS[2][:, 16:], past), whole)
    assert set(device.sessions["prefill"].graph_ids) == {-1}
