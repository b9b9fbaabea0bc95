"""Sampling against transformers' logits processors, and against the documented draw written out in plain Python."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as hf

from helium_onnx.errors import GenerationError, UsageError
from helium_onnx.generation import sampling
from helium_onnx.generation.sampling import Sampler, SamplingOptions, SplitMix64, token_logprobs

OPTIONS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 1},
    {"temperature": 0.7, "top_k": 40},
    {"temperature": 1.3, "top_p": 0.9},
    {"temperature": 0.01, "top_p": 0.5},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.0, "repetition_penalty": 1.8},
    {"temperature": 0.8, "top_k": 50, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.2},
    {"temperature": 2.5, "top_k": 5000, "top_p": 0.99, "min_p": 0.001, "repetition_penalty": 0.7},
]


def random_logits(seed: int, size: int = 3000, scale: float = 4.0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_is_kept_and_its_probabilities_are_those_of_transformers(options: dict[str, Any]) -> None:
    history = [5, 7, 7, 100, 2999]
    chain = [
        hf.RepetitionPenaltyLogitsProcessor(options.get("repetition_penalty", 1.0)),
        hf.TemperatureLogitsWarper(options["temperature"]),
    ]
    chain += [hf.TopKLogitsWarper(options["top_k"])] if "top_k" in options else []
    chain += [hf.TopPLogitsWarper(options["top_p"])] if "top_p" in options else []
    chain += [hf.MinPLogitsWarper(options["min_p"])] if "min_p" in options else []
    for seed in range(5):
        logits = random_logits(seed)
        logits[17] = -np.inf
        scores = torch.from_numpy(logits.astype(np.float64))[None]
        for step in chain:
            scores = step(torch.tensor([history]), scores)
        theirs = torch.softmax(scores, dim=-1)[0].numpy()
        ids, probabilities = Sampler(SamplingOptions(**options)).distribution(logits, history)
        assert ids.tolist() == np.flatnonzero(theirs > 0).tolist()
        np.testing.assert_allclose(probabilities, theirs[ids], rtol=1e-11)


def test_logits_equal_to_the_kth_are_all_kept_as_transformers_does() -> None:
    logits = np.array([1, 3, 2, 2, 2, 0], dtype=np.float32)
    theirs = hf.TopKLogitsWarper(2)(None, torch.from_numpy(logits)[None])[0]
    ids, _ = Sampler(SamplingOptions(temperature=1.0, top_k=2)).distribution(logits, [])
    assert ids.tolist() == [1, 2, 3, 4] == torch.isfinite(theirs).nonzero()[:, 0].tolist()


def test_greedy_takes_the_lowest_of_equal_ids_and_obeys_the_penalty() -> None:
    logits = np.array([0, 4, 4, 3], dtype=np.float32)
    assert Sampler(SamplingOptions()).sample(logits, []) == 1
    assert Sampler(SamplingOptions(repetition_penalty=1.2)).sample(logits, [1]) == 2
    assert Sampler(SamplingOptions(repetition_penalty=1.5)).sample(logits, [1, 2]) == 3
    negative = np.array([-4, -5], dtype=np.float32)
    assert Sampler(SamplingOptions(repetition_penalty=1.5)).sample(negative, [0, 0]) == 1


@given(st.lists(st.one_of(st.floats(-5, 5, width=32).map(round), st.just(-math.inf)), min_size=1, max_size=40))
def test_greedy_choice_needs_no_float64(logits: list[float]) -> None:
    """The quick way for float32 rows gives what the documented arithmetic gives."""
    array = np.array([*logits, -6], np.float32)
    assert Sampler(SamplingOptions()).sample(array, [0, 0]) == int(np.argmax(array.astype(np.float64)))
    ids, probabilities = Sampler(SamplingOptions()).distribution(array, [0, 0])
    assert (ids.tolist(), probabilities.tolist()) == ([Sampler(SamplingOptions()).sample(array, [])], [1.0])


def splitmix64(state: int) -> Any:
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        yield z ^ (z >> 31)


def test_the_generator_gives_the_published_numbers() -> None:
    random = SplitMix64(1234567)
    assert [random.next_uint64() for _ in range(5)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    uniform = SplitMix64(1234567).next_uniform()
    assert uniform == (6457827717110365317 >> 11) / 2**53


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("row", [0, 3])
def test_the_draw_is_the_documented_one(options: dict[str, Any], row: int) -> None:
    seed = 2**64 - 3
    sampler = Sampler(SamplingOptions(seed=seed, **options), row)
    # mix(3), written out: the second stream's offset. mix(0) is 0.
    offset = 0
    if row:
        offset = next(splitmix64((row - 0x9E3779B97F4A7C15) % 2**64))
    random = splitmix64((seed + offset) % 2**64)
    for step in range(20):
        logits = random_logits(100 + step, size=700, scale=0.5 if step % 2 else 3.0)
        history = list(range(step))
        ids, probabilities = sampler.distribution(logits, history)
        ranked = sorted(zip(-probabilities, ids.tolist(), strict=True))
        target, running, chosen = (next(random) >> 11) * 2.0**-53, 0.0, ranked[-1][1]
        for negative, token_id in ranked:
            running -= negative
            if running > target:
                chosen = token_id
                break
        assert sampler.sample(logits, history) == chosen


def test_equal_probabilities_are_ranked_by_id() -> None:
    logits = np.zeros(1000, dtype=np.float32)
    uniforms, sampler = SplitMix64(9), Sampler(SamplingOptions(temperature=1.0, seed=9))
    assert [sampler.sample(logits, []) for _ in range(50)] == [int(uniforms.next_uniform() * 1000) for _ in range(50)]


def test_a_running_sum_that_only_reaches_the_target_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SplitMix64, "next_uniform", lambda _: 0.5)
    sampler = Sampler(SamplingOptions(temperature=1.0))
    assert sampler.sample(np.zeros(4, dtype=np.float32), []) == 2  # the sums are 1, 2, 3, 4 and the target 2


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_where_bounds_of_the_total_leave_it_open_it_is_summed(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two uniforms in 10^12 they do; here, of all: tokens are the same."""
    logits = [random_logits(seed) for seed in range(50)]
    quick = Sampler(SamplingOptions(seed=1, **options))
    expected = [quick.sample(row, [1, 2]) for row in logits]
    monkeypatch.setattr(sampling, "_total_bounds", lambda weights: (0.0, 1.5 * float(weights.sum())))
    summed = Sampler(SamplingOptions(seed=1, **options))
    assert [summed.sample(row, [1, 2]) for row in logits] == expected


@given(st.lists(st.floats(0, 1), min_size=1, max_size=400), st.floats(0, 1, exclude_max=True))
def test_the_likeliest_are_the_beginning_of_the_full_order(values: list[float], share: float) -> None:
    weights = np.array([*values, 1.0])
    ranks, running = sampling._ranked_until(weights, float(weights.sum()), share * float(weights.sum()))
    full = np.argsort(-weights, kind="stable")[: np.count_nonzero(weights)]
    assert ranks.tolist() == full[: len(ranks)].tolist()
    assert running.tolist() == np.cumsum(weights[ranks]).tolist()
    assert len(ranks) == len(full) or running[-1] > share * weights.sum()


def test_draws_have_the_frequencies_of_their_probabilities() -> None:
    logits = random_logits(1, size=400, scale=1.5)
    sampler = Sampler(SamplingOptions(temperature=0.9, top_p=0.95, seed=42))
    ids, probabilities = sampler.distribution(logits, [])
    count = 20_000
    drawn = np.bincount([sampler.sample(logits, []) for _ in range(count)], minlength=400)
    assert drawn.sum() == drawn[ids].sum()
    expected = probabilities * count
    chi_square = float(((drawn[ids] - expected) ** 2 / expected).sum())
    freedom = len(ids) - 1
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)


def test_rows_have_streams_of_their_own_and_row_zero_is_that_of_a_single_prompt() -> None:
    streams = [SplitMix64(7, row) for row in range(4)]
    drawn = [[stream.next_uint64() for _ in range(100)] for stream in streams]
    assert len({value for stream in drawn for value in stream}) == 400
    single = SplitMix64(7)
    assert drawn[0] == [single.next_uint64() for _ in range(100)]


def test_an_open_seed_is_drawn_and_repeats_the_draws() -> None:
    logits = random_logits(3)
    first = Sampler(SamplingOptions(temperature=1.5))
    again = Sampler(SamplingOptions(temperature=1.5, seed=first.seed))
    other = Sampler(SamplingOptions(temperature=1.5))
    assert 0 <= first.seed < 2**53
    assert first.seed != other.seed
    assert [first.sample(logits, []) for _ in range(20)] == [again.sample(logits, []) for _ in range(20)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [[1, math.nan, 0], [math.inf, 0, 0], [-math.inf] * 3, []])
def test_logits_that_are_no_numbers_are_an_error_not_a_token(temperature: float, bad: list[float]) -> None:
    logits = np.array(bad, dtype=np.float32)
    with pytest.raises(GenerationError, match="no usable logits"):
        Sampler(SamplingOptions(temperature=temperature)).sample(logits, [])
    with pytest.raises(GenerationError, match="no usable logits"):
        token_logprobs(logits, 0, 1)


@example([0.0, 2.220446049250313e-16], 5.0, 0, 0.5, 0.0, 0)
@settings(deadline=None)
@given(
    st.lists(st.one_of(st.floats(-1e4, 1e4, width=32), st.just(-math.inf)), min_size=1, max_size=50),
    st.floats(1e-300, 1e6),
    st.integers(0, 60),
    st.floats(1e-9, 1),
    st.floats(0, 1),
    st.integers(0, 2**64 - 1),
)
def test_a_masked_token_is_never_drawn(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    if max(logits) == -math.inf:
        logits = [*logits, 0.0]
    options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    array = np.array(logits, dtype=np.float32)
    ids, probabilities = Sampler(options).distribution(array, [])
    # Logits that differ by less than a probability can show are equally likely: one of them stays.
    likeliest = np.exp((array.astype(np.float64) - array.max()) / temperature) == 1
    assert likeliest[ids].any()
    assert abs(probabilities.sum() - 1) < 1e-9
    chosen = Sampler(options).sample(array, [])
    assert chosen in ids
    assert logits[chosen] > -math.inf


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-0.1, math.nan, math.inf, "1", None, True]),
        ("top_k", [-1, 1.5, math.nan, "1", None, True]),
        ("top_p", [0, -0.1, 1.1, math.nan, "1", None]),
        ("min_p", [-0.1, 1.1, math.nan, "1", None]),
        ("repetition_penalty", [0, -1, math.nan, math.inf, "1", None]),
        ("seed", [-1, 2**64, 1.0, "1", True]),
    ],
)
def test_options_are_checked_when_they_are_made(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(UsageError, match=name):
            SamplingOptions(**{name: value})


def test_logprobs_are_those_of_the_raw_logits() -> None:
    logits = np.array([1.0, 2.0, 3.0, 3.0, -math.inf], dtype=np.float32)
    total = sum(math.exp(x) for x in (1, 2, 3, 3))
    chosen, top = token_logprobs(logits, 0, 3)
    assert chosen == pytest.approx(1 - math.log(total), abs=1e-12)
    assert [token_id for token_id, _ in top] == [2, 3, 1]
    assert [value for _, value in top] == pytest.approx([3 - math.log(total)] * 2 + [2 - math.log(total)], abs=1e-12)
    assert token_logprobs(logits, 1, 0)[1] == ()
    assert len(token_logprobs(logits, 1, 99)[1]) == 4
