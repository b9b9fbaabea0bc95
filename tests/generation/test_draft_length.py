"""The lengths of drafts on a machine that is simulated: no clock, no model."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from helium_onnx.generation.draft_length import MOST_TOKENS, DraftLength

PRIORS = {8: 0.9, 5: 0.75, 3: 0.6, 2: 0.5}
PLAIN = 0.01  # seconds of a plain step


@dataclass
class Machine:
    """Steps of ``width`` tokens take ``PLAIN * cost(width)``; ``jitter`` makes each up to so much longer."""

    cost: Callable[[int], float]
    jitter: float = 0.0
    seed: int = 0
    lengths: list[int] = field(default_factory=list)
    controller: DraftLength = field(default_factory=lambda: DraftLength(PRIORS))

    def run(self, tokens: int, accepts: Callable[[int], float], kind: Callable[[int], int] = lambda _: 8) -> float:
        """Generate; return the seconds over those of plain decoding.

        ``accepts(i)`` is the probability that a drafted token ``i`` is right, ``kind(i)`` the draft at hand before it.
        """
        rng = random.Random(self.seed)
        spent = 0.0
        done = 0
        while done < tokens:
            most = min(MOST_TOKENS, tokens - done - 1)
            length = self.controller.choose(kind(done), most) if kind(done) else 0
            assert 0 <= length <= max(most, 0)
            seconds = PLAIN * self.cost(length + 1) * (1 + self.jitter * rng.random())
            accepted = 0
            while accepted < length and rng.random() < accepts(done + accepted):
                accepted += 1
            if length:
                self.controller.record_draft(kind(done), length, accepted + 1, accepted, seconds)
            else:
                self.controller.record_plain(seconds)
            done += accepted + 1
            spent += seconds
            self.lengths.append(length)
        return spent / (tokens * PLAIN * (1 + self.jitter / 2))


def line(slope: float) -> Callable[[int], float]:
    return lambda width: 1 + slope * (width - 1)


def jump(width: int) -> float:
    """As our own kernels are on the small sample: a second row costs half a step, each more a fifth."""
    return 1.0 if width == 1 else 1.5 + 0.2 * (width - 2)


COSTS = {
    "free": line(0.02),
    "cheap": line(0.1),
    "half": line(0.5),
    "dear": line(0.9),
    "dearer": line(1.2),
    "jump": jump,
}


@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS.keys())
@pytest.mark.parametrize(
    "kind", [lambda _: 0, lambda _: 2, lambda _: 8, lambda i: (0, 2, 3, 5, 8)[i % 5]], ids=["none", "2", "8", "all"]
)
def test_on_text_that_no_draft_foresees_it_stays_within_three_percent(
    cost: Callable[[int], float], kind: Callable[[int], int]
) -> None:
    for tokens in (300, 3000):
        assert Machine(cost).run(tokens, lambda _: 0.0, kind) <= 1.03
    for seed in range(3):
        assert Machine(cost, jitter=0.3, seed=seed).run(1500, lambda _: 0.0, kind) <= 1.03


@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS.keys())
@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3, 0.5, 0.7])
def test_at_any_rate_of_acceptance_it_stays_within_three_percent(cost: Callable[[int], float], rate: float) -> None:
    for seed in range(3):
        assert Machine(cost, seed=seed).run(1500, lambda _: rate) <= 1.03


@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS.keys())
@pytest.mark.parametrize("period", [5, 30, 200, 700])
def test_texts_that_change_their_nature_do_not_mislead_it(cost: Callable[[int], float], period: int) -> None:
    """Drafts are right long enough to be believed, and then wrong: the worst that a text can do."""
    assert Machine(cost).run(3000, lambda i: float(i // period % 2 == 0)) <= 1.03


def test_over_many_short_texts_too() -> None:
    machine = Machine(line(0.5))
    spent = 0.0
    for _ in range(40):
        machine.controller.begin_text()
        spent += 50 * machine.run(50, lambda _: 0.0)
    assert spent <= 1.03 * 40 * 50


@pytest.mark.parametrize("cost", [line(0.02), line(0.1), line(0.3), jump], ids=["free", "cheap", "third", "jump"])
def test_on_repetitive_text_it_soon_reaches_the_longest_drafts(cost: Callable[[int], float]) -> None:
    machine = Machine(cost)
    ratio = machine.run(600, lambda _: 1.0)
    assert machine.lengths[:3] == [0, 0, 0]  # what a plain step takes is measured first
    assert MOST_TOKENS in machine.lengths[:8]
    assert ratio < 1.2 * machine.cost(17) / 17


def test_a_repetitive_passage_after_long_failure_is_noticed() -> None:
    machine = Machine(line(0.1))
    machine.run(2000, lambda _: 0.0)
    machine.lengths.clear()
    assert machine.run(400, lambda _: 1.0) < 0.6
    assert MOST_TOKENS in machine.lengths


def test_the_best_length_is_found_where_wide_steps_jump() -> None:
    """Kernels take up to eight rows at once: 2 to 8 tokens cost the same, more twice that."""

    def cost(width: int) -> float:
        return 1.0 if width == 1 else 1.5 if width <= 8 else 3.0

    machine = Machine(cost)
    machine.run(3000, lambda _: 0.85)
    settled = machine.lengths[200:]
    assert sorted(settled)[len(settled) // 2] in range(5, 8)


@pytest.mark.parametrize(("rate", "lengths"), [(0.3, range(0, 4)), (0.9, range(8, 17))])
def test_lengths_follow_acceptance(rate: float, lengths: range) -> None:
    machine = Machine(line(0.05))
    machine.run(3000, lambda _: rate)
    settled = sorted(machine.lengths[100:])
    assert settled[len(settled) // 2] in lengths


def test_kinds_of_drafts_are_told_apart() -> None:
    machine = Machine(line(0.3))
    kinds = [(8, 2)[i % 2] for i in range(4000)]
    machine.run(4000, lambda i: 0.0 if kinds[i] == 2 else 1.0, lambda i: kinds[i])  # two in a row are never right
    controller = machine.controller
    assert controller.choose(8, 16) >= 1
    assert controller._acceptances[2].pause > 8


def test_the_price_of_a_draft_model_counts() -> None:
    controller = DraftLength({1: 0.9})
    for _ in range(3):
        controller.record_plain(1.0)
    assert controller.choose(1, 16) > 0
    assert controller.choose(1, 16, seconds_per_token=0.1) > 0
    controller._acceptances[1].waits = 0
    assert controller.choose(1, 16, seconds_per_token=2.0) == 0  # not even to try it: the credit is two steps
    assert controller.choose(1, 16, setup_seconds=3.0) == 0


def test_a_plain_step_is_measured_again_from_time_to_time() -> None:
    machine = Machine(line(0.02))
    machine.run(6000, lambda _: 1.0)
    assert 2 <= machine.lengths[10:-2].count(0) <= len(machine.lengths) / 50


def test_nothing_is_drafted_where_nothing_may_be() -> None:
    controller = DraftLength(PRIORS)
    assert controller.choose(8, 16) == 0  # no plain step was measured yet
    for _ in range(3):
        controller.record_plain(1.0)
    assert controller.choose(8, 0) == 0
    assert controller.choose(8, 1) == 1


def test_a_text_that_ends_within_a_draft_says_nothing_of_its_rest() -> None:
    controller = DraftLength(PRIORS)
    for _ in range(3):
        controller.record_plain(1.0)
    controller.record_draft(8, 5, 2, 2, 1.0)
    acceptance = controller._acceptances[8]
    assert acceptance._tested[2:] == [0.0] * 14
    assert acceptance.rate(1, 0.0) > 0
