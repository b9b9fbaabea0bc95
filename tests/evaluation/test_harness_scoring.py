"""Scores against a plain computation of them, and what the prefix cache runs. Needs neither the harness nor a model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from fake_session import FakePast, FakeSession
from numpy.typing import NDArray

from helium_onnx.errors import ContextOverflowError, GenerationError
from helium_onnx.evaluation.harness_prefix import PrefixSession
from helium_onnx.evaluation.harness_scoring import Score, scores
from helium_onnx.runtimes.session import Past, Phase

VOCAB = 50


class ManyTokens(FakeSession):
    """The fake session with several tokens a step, as one row may have. ``tokens`` counts those that were run."""

    tokens = 0

    def run(self, phase: Phase, input_ids: NDArray[np.int64], past: Past) -> NDArray[np.float32]:
        self.tokens += input_ids.size
        if phase == "prefill":
            return super().run(phase, input_ids, past)
        steps = np.split(input_ids, input_ids.shape[1], axis=1)
        return np.concatenate([FakeSession.run(self, phase, ids, past).copy() for ids in steps], axis=1)


def fake(context_length: int = 64) -> ManyTokens:
    return ManyTokens(vocab_size=VOCAB, context_length=context_length)


def plain_score(context: list[int], continuation: list[int]) -> Score:
    """Each token of the continuation after a prefill of all that stands before it."""
    logprob, is_greedy = 0.0, True
    for position, target in enumerate(continuation):
        session = fake(1024)
        logits = session.run("prefill", np.array([context + continuation[:position]]), session.new_past(1))[0, 0]
        exponentials = np.exp(logits.astype(np.float64))
        logprob += float(np.log(exponentials[target] / exponentials.sum()))
        is_greedy = is_greedy and int(logits.argmax()) == target
    return Score(logprob, is_greedy)


def random_requests(seed: int, count: int) -> list[tuple[list[int], list[int]]]:
    """Contexts that share prefixes of any length, one another's beginnings among them; repeated requests too."""
    rng = np.random.default_rng(seed)
    stem = rng.integers(0, VOCAB, 30).tolist()
    requests = []
    for _ in range(count):
        context = stem[: rng.integers(1, 31)] + rng.integers(0, VOCAB, rng.integers(0, 4)).tolist()
        requests.append((context, rng.integers(0, 3, rng.integers(1, 8)).tolist()))
    return requests + requests[:3]


@pytest.mark.parametrize("enabled", [True, False])
def test_scores_are_those_of_a_plain_computation(enabled: bool) -> None:
    requests = random_requests(seed=1, count=40)

    found = dict(scores(PrefixSession(fake(), enabled=enabled), requests))

    assert sorted(found) == list(range(len(requests)))
    for index, (context, continuation) in enumerate(requests):
        expected = plain_score(context, continuation)
        assert found[index].logprob == pytest.approx(expected.logprob, abs=1e-5)
        assert found[index].is_greedy == expected.is_greedy


def test_a_greedy_continuation_is_told() -> None:
    context = [1, 2, 3]
    session = fake()
    logits = session.run("prefill", np.array([context]), session.new_past(1))[0, 0]
    best = int(logits.argmax())

    found = dict(scores(PrefixSession(fake()), [(context, [best]), (context, [(best + 1) % VOCAB])]))

    assert found[0].is_greedy
    assert not found[1].is_greedy


def test_a_shared_context_is_computed_once() -> None:
    context = list(range(20))
    session = PrefixSession(inner := fake())

    list(scores(session, [(context, [1, 2, 3]), (context, [4, 5]), (context, [6]), ([*context, 7], [8])]))

    # The context, 2 tokens of the first continuation, 1 of the second, none of the third, and the 7 of the fourth.
    assert session.count.computed == inner.tokens == 20 + 2 + 1 + 0 + 1
    assert session.count.requested == 22 + 21 + 20 + 21


def test_without_the_cache_all_is_computed() -> None:
    context = list(range(20))
    session = PrefixSession(inner := fake(), enabled=False)

    list(scores(session, [(context, [1, 2, 3]), (context, [4, 5])]))

    assert session.count.computed == session.count.requested == inner.tokens == 22 + 21


def test_what_is_too_long_loses_its_first_tokens() -> None:
    context, continuation = list(range(30)), [5, 6, 7]

    ((_, found),) = scores(PrefixSession(fake(context_length=10)), [(context, continuation)])

    # 10 tokens are read: 8 of the context and 2 of the continuation, whose last is only predicted.
    assert found.logprob == pytest.approx(plain_score(context[-8:], continuation).logprob, abs=1e-5)


def test_a_continuation_longer_than_the_context_is_refused_before_any_work() -> None:
    session = fake(context_length=4)
    with pytest.raises(ContextOverflowError, match="5 tokens"):
        list(scores(session, [([1], [2]), ([1], [2] * 5)]))
    assert session.tokens == 0


def test_logits_that_are_no_numbers_are_refused() -> None:
    class Broken(ManyTokens):
        def run(self, phase: Phase, input_ids: NDArray[np.int64], past: Past) -> NDArray[np.float32]:
            return np.full_like(super().run(phase, input_ids, past), np.nan)

    with pytest.raises(GenerationError, match="not numbers"):
        list(scores(Broken(vocab_size=VOCAB), [([1], [2])]))


def test_several_rows_go_to_the_session_as_they_are() -> None:
    session = PrefixSession(inner := fake())
    list(scores(session, [([1, 2, 3], [4])]))

    past = session.new_past(2)
    for row in range(2):
        session.run("prefill", np.array([[1, 2, 3 + row]]), past.row(row))
    session.run("decode", np.array([[5], [6]]), past)
    list(scores(session, [([1, 2, 3], [4])]))  # the rows have taken the past over: nothing is left to share

    assert isinstance(past, FakePast)
    assert [ids for ids, _ in past.rows] == [[1, 2, 3, 5], [1, 2, 4, 6]]
    assert inner.tokens == 3 + 3 + 3 + 2 + 3


def test_a_run_that_failed_leaves_nothing_to_share() -> None:
    inner = fake()
    session = PrefixSession(inner)
    context = list(range(8))
    inner.interrupt_at = 1
    with pytest.raises(KeyboardInterrupt):
        for _, _ in itertools.islice(scores(session, [(context, [1, 2]), (context, [1, 3])]), 2):
            pass
    inner.interrupt_at = None
    before = inner.tokens

    ((_, found),) = scores(session, [(context, [1, 2])])

    assert inner.tokens - before == 9
    assert found.logprob == pytest.approx(plain_score(context, [1, 2]).logprob, abs=1e-5)
