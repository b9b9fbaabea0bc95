"""Sampling with a draft model against the exact distribution: whole sequences, over a vocabulary of three."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from fake_session import FakeSession

from helium_onnx.generation.draft_length import DraftLength
from helium_onnx.generation.draft_model import MODEL_PRIORS, DraftModel, DraftTimes
from helium_onnx.generation.loop import Loop
from helium_onnx.generation.rejection import Proposal, Rejection
from helium_onnx.generation.request import Request
from helium_onnx.generation.sampling import Sampler, SamplingOptions
from helium_onnx.generation.speculation import Speculation

VOCAB, TOKENS, COUNT = 3, 4, 2500
PROMPT = [1, 2]


class Bigram(FakeSession):
    """A model of three tokens: logits follow from the last two. ``share`` of them are those of model 0."""

    def __init__(self, model: int, share: float = 0.0) -> None:
        super().__init__(vocab_size=VOCAB)
        own, first = (np.random.default_rng(n).standard_normal((VOCAB, VOCAB, VOCAB)) for n in (model, 0))
        self._table = ((1 - share) * own + share * first).astype(np.float32) * 1.5

    def logits(self, ids: list[int], _: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        table: np.ndarray[Any, np.dtype[np.float32]] = self._table[ids[-2], ids[-1]]
        return table


class NoText:
    """In place of a tokenizer, where only ids matter."""

    eos_token_ids = ()

    def stream(self, _: object) -> NoText:
        return self

    def push(self, _: object) -> str:
        return ""

    def finish(self) -> str:
        return ""


class Always(DraftLength):
    """Drafts of ``count`` tokens, whatever they cost."""

    def __init__(self, count: int) -> None:
        super().__init__(MODEL_PRIORS)
        self._count = count

    def choose(self, kind: int, most: int, **_: float) -> int:
        assert kind == 1
        return min(self._count, most)

    def record_draft(self, *_: object) -> None:
        pass


def generated(target: FakeSession, draft: FakeSession, sampling: SamplingOptions, length: int) -> tuple[int, ...]:
    request = Request((PROMPT,), TOKENS, sampling, (), None, True)
    speculation = Speculation(DraftModel(draft, sampling, DraftTimes()), Always(length))
    loop = Loop(target, NoText(), request, is_current=lambda: True, speculation=speculation)  # type: ignore[arg-type]
    assert list(loop.events()) == []
    return loop.result()[0].token_ids


def exactly(target: FakeSession, sampling: SamplingOptions) -> dict[tuple[int, ...], float]:
    """The probability of each sequence, by the chain rule over ``Sampler.distribution``."""
    sampler = Sampler(sampling)
    found = {}
    for sequence in itertools.product(range(VOCAB), repeat=TOKENS):
        history, probability = list(PROMPT), 1.0
        for token in sequence:
            ids, probabilities = sampler.distribution(target.logits(history, len(PROMPT)), history)
            probability *= dict(zip(ids.tolist(), probabilities.tolist(), strict=True)).get(token, 0.0)
            history.append(token)
        if probability:
            found[sequence] = probability
    assert math.isclose(sum(found.values()), 1.0)
    return found


def deviation(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """Chi-square's distance from its mean, in standard deviations; sequences of which fewer than five are expected are
    taken together.
    """
    assert set(counts) <= set(expected)
    total = sum(counts.values())
    rare = {key for key, p in expected.items() if p * total < 5}
    cells = [(counts[key], expected[key] * total) for key in expected if key not in rare]
    cells.append((sum(counts[key] for key in rare), max(1e-9, sum(expected[key] for key in rare) * total)))
    chi_square = sum((observed - mean) ** 2 / mean for observed, mean in cells)
    freedom = len(cells) - 1
    return (chi_square - freedom) / math.sqrt(2 * freedom)


OPTIONS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 2, "repetition_penalty": 1.5},
    {"temperature": 1.3, "top_p": 0.85, "min_p": 0.05},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("share", "length"), [(0.0, 2), (0.7, 2), (0.7, 1)])
def test_sequences_have_the_models_own_distribution(options: dict[str, Any], share: float, length: int) -> None:
    target, draft = Bigram(0), Bigram(1, share)
    counts = Counter(generated(target, draft, SamplingOptions(**options, seed=seed), length) for seed in range(COUNT))
    assert deviation(counts, exactly(target, SamplingOptions(**options))) < 4
    assert {len(ids[0]) for phase, ids in target.calls if phase == "decode"} >= {length + 1}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_without_the_residual_the_distribution_is_another(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above would notice: here a rejected token is followed by a draw from p itself."""

    def sample(self: Rejection, logits: Any, history_ids: list[int], proposal: Proposal) -> int:
        ids, target = self._sampler.distribution(logits, history_ids)
        p, q = (
            dict(zip(i.tolist(), v.tolist(), strict=True)).get(proposal.token_id, 0.0)
            for i, v in ((ids, target), (proposal.ids, proposal.probabilities))
        )
        return proposal.token_id if self._random.next_uniform() * q < p else self._sampler.draw(ids, target)

    monkeypatch.setattr(Rejection, "sample", sample)
    target, draft = Bigram(0), Bigram(1, 0.0)
    counts = Counter(generated(target, draft, SamplingOptions(**options, seed=seed), 2) for seed in range(COUNT))
    assert deviation(counts, exactly(target, SamplingOptions(**options))) > 10


def test_a_draft_from_the_models_own_distribution_is_always_accepted() -> None:
    target, draft = Bigram(0), Bigram(0)
    for seed in range(50):
        target.calls.clear()
        generated(target, draft, SamplingOptions(temperature=1.0, seed=seed), 2)
        assert [len(ids[0]) for _, ids in target.calls] == [2, 3]  # the prompt; then all the other tokens in one step


def test_equal_seeds_and_lengths_give_equal_tokens() -> None:
    target, draft = Bigram(0), Bigram(1, 0.5)
    options = SamplingOptions(temperature=1.0, seed=77)
    assert len({generated(target, draft, options, 2) for _ in range(5)}) == 1


def test_a_token_that_the_filters_left_out_is_never_accepted() -> None:
    sampler = Sampler(SamplingOptions(temperature=1.0, top_k=1, seed=5))
    rejection = Rejection(sampler)
    logits = np.array([0, 3, 1, 2], np.float32)
    proposal = Proposal(2, np.array([2]), np.array([1.0]))
    assert {rejection.sample(logits, [], proposal) for _ in range(20)} == {1}


def test_where_both_distributions_differ_in_the_last_bit_only_the_draw_is_the_models() -> None:
    class Unlucky(Rejection):
        def __init__(self, sampler: Sampler) -> None:
            super().__init__(sampler)
            self._random.next_uniform = lambda: 1 - 2.0**-53  # type: ignore[method-assign]

    sampler = Sampler(SamplingOptions(temperature=1.0, seed=5))
    logits = np.zeros(4, np.float32)
    ids, probabilities = sampler.distribution(logits, [])
    nearly = Proposal(0, ids, probabilities * (1 + 2e-16))
    assert {Unlucky(sampler).sample(logits, [], nearly) for _ in range(60)} == {0, 1, 2, 3}
