"""What a prefix cache changes for a model: the tokens that are computed, and not one bit of the logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_session import ChunkedSession, FakePast, FakeSession
from hypothesis import given, settings
from hypothesis import strategies as st

from helium_onnx.errors import UsageError
from helium_onnx.generation import prefix_cache
from helium_onnx.generation.draft_length import DraftLength
from helium_onnx.generation.model import LanguageModel
from helium_onnx.tokenizer import Tokenizer

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
BLOCK = 8


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_cache, "_BLOCK_TOKENS", BLOCK)


class Reproducible(FakeSession):
    """A text may be split anywhere, and the session says so."""

    exact_split = 1


class Unsplit(ChunkedSession):
    exact_split = 0

    def run(self, phase: Any, input_ids: Any, past: Any) -> Any:
        return FakeSession.run(self, phase, input_ids + self.vocab_size * (1 + input_ids.shape[1]), past)


def computed(session: FakeSession, phase: str = "prefill") -> int:
    """Tokens of all prefill calls."""
    return sum(len(ids[0]) for name, ids in session.calls if name == phase)


def text(seed: int, words: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


@pytest.mark.parametrize("kind", [Reproducible, ChunkedSession])
def test_a_shared_beginning_is_computed_once(kind: type[FakeSession], tokenizer: Tokenizer) -> None:
    session = kind()
    model = LanguageModel(session, tokenizer, prefix_cache=1_000_000)
    shared = text(0, 40)
    results = [model.generate(f"{shared} {end}", max_new_tokens=1)[0] for end in ("one", "two two", "three")]
    assert results[0].cached_tokens == 0
    common = len(tokenizer.encode(shared)) // BLOCK * BLOCK
    assert [result.cached_tokens for result in results[1:]] == [common, common]
    assert computed(session) == sum(result.prompt_tokens - result.cached_tokens for result in results)
    again = model.generate(f"{shared} one", max_new_tokens=1)[0]
    assert again.cached_tokens == (again.prompt_tokens - 1) // BLOCK * BLOCK
    assert again.token_ids == results[0].token_ids


@pytest.mark.parametrize("kind", [Reproducible, ChunkedSession])
def test_prompts_of_one_batch_share_too(kind: type[FakeSession], tokenizer: Tokenizer) -> None:
    shared = text(1, 30)
    prompts = [f"{shared} {end}" for end in ("one", "two", "three four", "one")]
    with_cache = LanguageModel(kind(), tokenizer, prefix_cache=1_000_000).generate(prompts, max_new_tokens=4)
    without = LanguageModel(kind(), tokenizer).generate(prompts, max_new_tokens=4)
    assert [row.token_ids for row in with_cache] == [row.token_ids for row in without]
    common = len(tokenizer.encode(shared)) // BLOCK * BLOCK
    cached = [row.cached_tokens for row in with_cache]
    assert cached[0] == 0 and min(cached[1:]) >= common
    assert {row.cached_tokens for row in without} == {0}


ends = st.lists(st.sampled_from(["one", "two", "three"]), max_size=24)


@pytest.mark.parametrize("kind", [Reproducible, ChunkedSession, Unsplit])
@settings(max_examples=40, deadline=None)
@given(
    requests=st.lists(st.tuples(st.lists(ends, min_size=1, max_size=3), st.integers(1, 30)), min_size=1, max_size=6),
    blocks=st.integers(0, 20),
)
def test_logits_are_those_without_a_cache(
    tokenizer: Tokenizer, kind: type[FakeSession], requests: list[tuple[list[list[str]], int]], blocks: int
) -> None:
    """Conversations too: a request may go on from what an earlier one generated."""
    model = LanguageModel(kind(), tokenizer, prefix_cache=blocks * BLOCK * 8)
    reuses = 0
    answer = ""
    for prompts, tokens in requests:
        options: Any = {"max_new_tokens": tokens, "logprobs": 3, "ignore_eos": True}
        texts = [answer + " " + " ".join(words) for words in prompts]
        if max(len(tokenizer.encode(t)) for t in texts) + tokens > 256:
            break
        found = model.generate(texts, **options)
        plain = LanguageModel(kind(), tokenizer).generate(texts, **options, speculation="off")
        for ours, theirs in zip(found, plain, strict=True):
            assert (ours.token_ids, ours.logprobs) == (theirs.token_ids, theirs.logprobs)
            reuses += ours.cached_tokens
        answer = texts[0] + found[0].text
    if kind is Unsplit:
        assert reuses == 0
        assert model._prefix_cache is None


def test_a_conversation_goes_on_from_what_was_generated(tokenizer: Tokenizer) -> None:
    """The last turn's text is part of the next prompt; how much is found depends on whether it is tokenized alike."""
    script = tokenizer.encode(text(3, 40), add_bos=False)
    for kind, reused in ((Reproducible, True), (ChunkedSession, False)):
        session = kind(script=script)
        model = LanguageModel(session, tokenizer, prefix_cache=1_000_000)
        prompt = text(2, 20)
        answer = model.generate(prompt, max_new_tokens=len(script), ignore_eos=True)[0]
        assert answer.token_ids == tuple(script)
        following = model.generate(prompt + answer.text + " ten ten", max_new_tokens=1)[0]
        before = answer.prompt_tokens + (len(script) - 1 if reused else 0)
        assert following.cached_tokens == before // BLOCK * BLOCK


def test_only_prompt_tokens_are_kept_where_decode_steps_compute_otherwise(tokenizer: Tokenizer) -> None:
    model = LanguageModel(ChunkedSession(), tokenizer, prefix_cache=1_000_000)
    result = model.generate(text(4, 30), max_new_tokens=40, ignore_eos=True)[0]
    assert model._prefix_cache is not None
    kept = [token for entry in model._prefix_cache.entries() for token in entry.token_ids]
    assert len(kept) == result.prompt_tokens // BLOCK * BLOCK


def test_after_drafts_the_cache_holds_what_was_accepted(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DraftLength, "choose", lambda _, __, most, **___: min(most, 5))
    monkeypatch.setattr(DraftLength, "record_draft", lambda *_: None)
    script = tokenizer.encode("one two three " * 3 + "one two four five six " + "one two three " * 3, add_bos=False)
    for stop_at in range(len(script) - 12, len(script)):
        session = Reproducible(script=script)
        model = LanguageModel(session, tokenizer, prefix_cache=1_000_000)
        result = model.generate("one two three", max_new_tokens=stop_at, ignore_eos=True)
        assert result.speculation is not None and result.speculation.drafted > result.speculation.accepted > 0
        ids = [*tokenizer.encode("one two three"), *result[0].token_ids]
        assert model._prefix_cache is not None
        entries = model._prefix_cache.entries()
        stored = sorted((number, entry) for number, entry in enumerate(entries))
        assert [token for _, entry in stored for token in entry.token_ids] == ids[: (len(ids) - 1) // BLOCK * BLOCK]
        for entry in entries:
            assert entry.tensors[0].ravel().tolist() == list(entry.token_ids)


@pytest.mark.parametrize("call", range(1, 9))
def test_an_interrupted_request_keeps_what_is_sound(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    monkeypatch.setattr(DraftLength, "choose", lambda _, __, most, **___: min(most, 5))
    monkeypatch.setattr(DraftLength, "record_draft", lambda *_: None)
    session = Reproducible(script=tokenizer.encode("one two three " * 20, add_bos=False))
    model = LanguageModel(session, tokenizer, prefix_cache=1_000_000)
    session.interrupt_at = call
    prompt = text(5, 20)
    cut = model.generate(prompt, max_new_tokens=60)[0]
    assert cut.finish_reason == "interrupted"
    session.interrupt_at = None
    again = model.generate(prompt, max_new_tokens=60)[0]
    plain = LanguageModel(Reproducible(script=session.script), tokenizer).generate(prompt, max_new_tokens=60)[0]
    assert again.cached_tokens > 0
    assert again.token_ids == plain.token_ids


def test_a_stream_that_was_taken_over_stores_nothing_of_the_others(tokenizer: Tokenizer) -> None:
    model = LanguageModel(Reproducible(), tokenizer, prefix_cache=1_000_000)
    first, second = text(6, 20), text(7, 20)
    stream = model.stream(first, max_new_tokens=30, ignore_eos=True)
    next(stream)
    model.generate(second, max_new_tokens=30, ignore_eos=True)
    stream.close()
    assert model._prefix_cache is not None
    for entry in model._prefix_cache.entries():
        assert entry.tensors[0].ravel().tolist() == list(entry.token_ids)


@pytest.mark.parametrize("close", [True, False])
def test_a_stream_that_is_left_leaves_its_prompt(tokenizer: Tokenizer, close: bool) -> None:
    model = LanguageModel(Reproducible(), tokenizer, prefix_cache=1_000_000)
    stream = model.stream(text(8, 30), max_new_tokens=30)
    next(stream)
    next(stream)
    if close:
        stream.close()
    assert model.generate(text(8, 30), max_new_tokens=1)[0].cached_tokens >= 24


def test_it_stays_within_its_bytes(tokenizer: Tokenizer) -> None:
    model = LanguageModel(Reproducible(), tokenizer, prefix_cache=10 * BLOCK * 8)
    for seed in range(6):
        model.generate(text(seed, 30), max_new_tokens=1)
        assert model._prefix_cache is not None
        assert model._prefix_cache.nbytes <= 10 * BLOCK * 8
    assert model.generate(text(5, 30), max_new_tokens=1)[0].cached_tokens > 0
    assert model.generate(text(0, 30), max_new_tokens=1)[0].cached_tokens == 0


def test_without_bytes_nothing_is_copied(tokenizer: Tokenizer) -> None:
    class NoCopies(FakePast):
        def row(self, index: int) -> NoCopies:
            return NoCopies(self.rows[index : index + 1], self.lengths[index : index + 1])

        read_slots: Any = None  # asked for a copy, it would fail

    class Session(Reproducible):
        def new_past(self, rows: int) -> FakePast:
            past = super().new_past(rows)
            return NoCopies(past.rows, past.lengths)

    for options in ({}, {"prefix_cache": 0}):
        model = LanguageModel(Session(), tokenizer, **options)
        assert model._prefix_cache is None
        assert model.generate([text(0, 20)] * 2, max_new_tokens=2)[1].cached_tokens == 0
    with pytest.raises(UsageError, match="prefix_cache"):
        LanguageModel(FakeSession(), tokenizer, prefix_cache=-1)


def test_the_rate_counts_computed_tokens_only(tokenizer: Tokenizer) -> None:
    model = LanguageModel(Reproducible(), tokenizer, prefix_cache=1_000_000)
    prompt = text(9, 30)
    model.generate(prompt, max_new_tokens=1)
    result = model.generate(prompt, max_new_tokens=1)
    times = result.timings
    computed_tokens = result[0].prompt_tokens - result[0].cached_tokens
    assert 0 < computed_tokens <= BLOCK
    assert times.prefill_tokens_per_second * times.prefill_seconds == pytest.approx(computed_tokens)


def make_interrupting(model: LanguageModel, step: Callable[[], None]) -> None:
    """Call ``step`` when the cache is asked for a prefix."""
    cache = model._prefix_cache
    assert cache is not None
    real = cache.restore

    def restore(*args: Any) -> int:
        step()
        return real(*args)

    cache.restore = restore  # type: ignore[method-assign]


def test_ctrl_c_while_a_prefix_is_restored_is_raised_and_the_cache_goes_on(tokenizer: Tokenizer) -> None:
    model = LanguageModel(Reproducible(), tokenizer, prefix_cache=1_000_000)
    prompt = text(10, 30)
    whole = model.generate(prompt, max_new_tokens=5)[0]
    assert model._prefix_cache is not None
    real = model._prefix_cache.restore

    def interrupt() -> None:
        raise KeyboardInterrupt

    make_interrupting(model, interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.generate(prompt, max_new_tokens=5)
    model._prefix_cache.restore = real  # type: ignore[method-assign]
    again = model.generate(prompt, max_new_tokens=5)[0]
    assert again.token_ids == whole.token_ids and again.cached_tokens > 0
