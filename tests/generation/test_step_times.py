"""What a step takes, from measurements of some widths."""

from __future__ import annotations

import pytest

from helium_onnx.generation.step_times import Interruptions, StepTimes, TypicalSeconds


def plain_at(seconds: float) -> StepTimes:
    times = StepTimes(17)
    for _ in range(3):
        times.observe(1, seconds)
    return times


def test_plain_steps_come_first_and_the_first_may_have_waited() -> None:
    times = StepTimes(17)
    assert not times.known
    for seconds in (5.0, 1.0):
        times.observe(1, seconds)
        assert not times.known
    times.observe(1, 1.2)
    assert times.known
    assert times.plain.seconds == times.estimate(1) == 1.0


def test_widths_that_were_not_measured_lie_on_straight_lines() -> None:
    times = plain_at(1.0)
    assert times.estimate(2) > 1.0
    assert times.estimate(11) - times.estimate(6) == pytest.approx(times.estimate(6) - times.estimate(1))
    times.observe(5, 1.4)
    assert [times.estimate(width) for width in (1, 3, 5)] == pytest.approx([1.0, 1.2, 1.4])
    assert times.estimate(9) == pytest.approx(1.6)  # beyond, half as steep: how else would it be tried
    times.observe(9, 1.4)
    assert [times.estimate(width) for width in (7, 9, 17)] == pytest.approx([1.4, 1.4, 1.6])


def test_a_wide_step_is_never_expected_to_be_faster_than_a_narrower_one_beyond_what_was_measured() -> None:
    times = plain_at(1.0)
    times.observe(5, 0.9)
    assert times.estimate(17) == pytest.approx(0.9)


def test_measurements_are_averaged_and_outliers_count_little() -> None:
    times = plain_at(1.0)
    for _ in range(100):
        times.observe(1, 2.0)
    assert times.plain.seconds == pytest.approx(2.0, rel=0.01)
    times.observe(1, 100.0)
    assert times.plain.seconds < 2.2
    fresh = plain_at(1.0)
    fresh.observe(2, 100.0)
    assert fresh.estimate(2) <= 1.5 * 1.5


def test_a_width_that_is_not_measured_any_more_is_forgotten() -> None:
    times = plain_at(1.0)
    times.observe(9, 2.7)  # disturbed
    times.observe(3, 1.2)
    disturbed = times.estimate(9)
    for _ in range(500):
        times.observe(1, 1.0)
        times.observe(3, 1.2)
    assert disturbed > 2.5
    assert times.estimate(9) == pytest.approx(1.5, rel=0.01)
    assert times.known


def test_the_mean_holds_what_interruptions_take_in_the_long_run() -> None:
    times = plain_at(1.0)
    for _ in range(100):
        for seconds in [1.0] * 9 + [11.0]:
            times.observe(1, seconds)
    assert times.plain.seconds == pytest.approx(1.05, abs=0.05)
    assert 1.3 < times.plain.mean < 2.5
    times.observe(1, 1e6)  # asleep
    assert times.plain.mean < 10


def test_what_the_machine_did_is_not_a_steps_own_doing() -> None:
    times = plain_at(1.0)
    assert times.own_share(4, 5.0, 2.0) == 5.0  # new: it may be as slow as that
    assert times.own_share(4, 100.0, 2.0) == 2.0
    for _ in range(3):
        times.observe(4, 1.5)
    assert times.own_share(4, 3.9, 2.0) == 3.9
    assert times.own_share(4, 4.1, 2.0) == 2.0


def test_interruptions_are_shared_out_in_the_long_run() -> None:
    plain = TypicalSeconds()
    for seconds in [1.0] * 3 + [1.0, 1.0, 1.0, 5.0] * 50:
        plain.observe(seconds)
    quiet, same, worse = Interruptions(), Interruptions(), Interruptions()
    assert same.observe(1.0, 1.0, plain) == pytest.approx(plain.mean / plain.seconds, rel=0.1)
    for index in range(200):
        found = [
            quiet.observe(1.0, 1.0, plain),
            same.observe(5.0 if index % 4 == 3 else 1.0, 1.0, plain),
            worse.observe(5.0, 1.0, plain),
        ]
    assert found == [pytest.approx(1.0, abs=0.1), pytest.approx(2.0, rel=0.3), pytest.approx(5.0, rel=0.1)]
