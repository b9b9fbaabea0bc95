"""The loop over a session that chooses tokens itself and runs ahead: nothing but the speed may tell of it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from fake_session import FakeSession, GreedyFakeSession
from hypothesis import given, settings
from hypothesis import strategies as st

from helium_onnx.errors import GenerationError
from helium_onnx.generation.model import LanguageModel
from helium_onnx.generation.row import Row
from helium_onnx.runtimes.session import GreedySession
from helium_onnx.tokenizer import Tokenizer

PROMPTS = ["Once upon a time", "", "To insert a table in a text document, choose", "Où est-il ?\nIci"]
CACHE = 100_000


def decodes(session: FakeSession) -> int:
    return sum(phase == "decode" for phase, _ in session.calls)


def past_tokens(session: FakeSession) -> list[list[int]]:
    """The tokens whose keys and values the past holds, row by row."""
    return [row[0][:length] for row, length in zip(session.past.rows, session.past.lengths, strict=True)]


def assert_the_same(tokenizer: Tokenizer, prompts: list[str], options: dict[str, Any], **session: Any) -> None:
    """With the session's own choice and without: results, what the past holds, and what the prefix cache took."""
    plain, greedy = FakeSession(**session), GreedyFakeSession(**session)
    expected = LanguageModel(plain, tokenizer, prefix_cache=CACHE)
    model = LanguageModel(greedy, tokenizer, prefix_cache=CACHE)
    shown: list[list[str]] = [["" for _ in prompts], ["" for _ in prompts]]

    def show(texts: list[str]) -> Any:
        def add(index: int, text: str) -> None:
            texts[index] += text

        return add

    wanted = expected.generate(prompts, on_text=show(shown[0]), **options)
    found = model.generate(prompts, on_text=show(shown[1]), **options)
    assert found.generations == wanted.generations
    assert shown[0] == shown[1] == [generation.text for generation in wanted]
    assert past_tokens(greedy) == past_tokens(plain)
    assert model._prefix_cache is not None and expected._prefix_cache is not None
    assert [entry.token_ids for entry in model._prefix_cache.entries()] == [
        entry.token_ids for entry in expected._prefix_cache.entries()
    ]
    assert greedy.open_iterators == 0


def test_only_a_session_that_can_is_one() -> None:
    assert isinstance(GreedyFakeSession(), GreedySession)
    assert not isinstance(FakeSession(), GreedySession)


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
def test_it_is_used_where_nothing_else_is_asked_of_the_logits(tokenizer: Tokenizer, prompts: list[str]) -> None:
    session = GreedyFakeSession()
    model = LanguageModel(session, tokenizer)
    model.generate(prompts, max_new_tokens=6, speculation="off", ignore_eos=True)
    assert session.held_back
    asking: list[dict[str, Any]] = [{"temperature": 0.5}, {"repetition_penalty": 1.2}, {"logprobs": 0}]
    for options in asking:
        session.held_back.clear()
        model.generate(prompts, max_new_tokens=6, speculation="off", **options)
        assert not session.held_back
    if len(prompts) == 1:
        model.generate(prompts, max_new_tokens=6, speculation="prompt-lookup")
        assert not session.held_back


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    prompts=st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=3),
    new_tokens=st.integers(1, 40),
    stop=st.lists(st.sampled_from(["e", "on", " t", "\n", "zz", "ab"]), max_size=2),
    ignore_eos=st.booleans(),
)
def test_nothing_else_is_different(
    tokenizer: Tokenizer, data: st.DataObject, prompts: list[str], new_tokens: int, stop: list[str], ignore_eos: bool
) -> None:
    text = data.draw(st.text(alphabet="eon tab\n", min_size=1, max_size=30))
    script = tokenizer.encode(text, add_bos=False)
    if data.draw(st.booleans()):
        script.append(2)
    longest = max(len(tokenizer.encode(prompt)) for prompt in prompts)
    context = longest + new_tokens + data.draw(st.integers(0, 4))
    options = {"max_new_tokens": new_tokens, "stop": stop, "ignore_eos": ignore_eos, "speculation": "off"}
    assert_the_same(tokenizer, prompts, options, script=script, context_length=context)


def test_rows_of_a_batch_that_end_are_held_back(tokenizer: Tokenizer) -> None:
    """So that the longest may fill its context: an ended row would otherwise run out of its own."""
    prompts = [PROMPTS[2], "x"]
    longest = len(tokenizer.encode(prompts[0]))
    session = GreedyFakeSession(context_length=longest + 20, script=tokenizer.encode("a b c d", add_bos=False))
    model = LanguageModel(session, tokenizer)
    result = model.generate(prompts, max_new_tokens=20, stop=" b", speculation="off", ignore_eos=True)
    assert [row.finish_reason for row in result] == ["stop", "stop"]
    plain = FakeSession(context_length=longest + 20)
    alone = LanguageModel(plain, tokenizer).generate("x", max_new_tokens=20, ignore_eos=True)[0]
    stop = tokenizer.id_to_text(alone.token_ids[2]).strip()
    session = GreedyFakeSession(context_length=longest + 20)
    both = LanguageModel(session, tokenizer).generate(
        ["x", prompts[0]], max_new_tokens=20, stop=stop, ignore_eos=True, speculation="off"
    )
    assert both[0].finish_reason == "stop" and both[1].finish_reason == "length"
    ended = 2 + len(both[0].token_ids) - 1
    assert [lengths[0] for lengths in session.held_back][-5:] == [ended] * 5
    assert session.past.lengths.tolist() == [ended, longest + 19]


def test_the_session_is_never_far_ahead(tokenizer: Tokenizer) -> None:
    session = GreedyFakeSession(script=[*tokenizer.encode("one two three", add_bos=False), 2])
    result = LanguageModel(session, tokenizer).generate("x", max_new_tokens=100, speculation="off")
    assert result[0].finish_reason == "eos"
    assert decodes(session) <= len(result[0].token_ids) - 1 + session.ahead - 1
    session.calls.clear()
    # The first token, which the prefill gave, ends it: no step at all.
    LanguageModel(session, tokenizer).generate("x", max_new_tokens=1, speculation="off")
    assert decodes(session) == 0


@pytest.mark.parametrize("call", [1, 2, 3, 6])
@pytest.mark.parametrize("count", [1, 2])
def test_ctrl_c_keeps_what_was_generated(tokenizer: Tokenizer, count: int, call: int) -> None:
    options: dict[str, Any] = {"max_new_tokens": 10, "ignore_eos": True, "speculation": "off"}
    complete = LanguageModel(FakeSession(), tokenizer).generate(PROMPTS[:count], **options)
    session = GreedyFakeSession()
    session.interrupt_at = call
    result = LanguageModel(session, tokenizer).generate(PROMPTS[:count], **options)
    for index, (part, whole) in enumerate(zip(result, complete, strict=True)):
        assert part.finish_reason == "interrupted"
        assert part.token_ids == whole.token_ids[: len(part.token_ids)]
        assert whole.text.startswith(part.text)
        if part.token_ids:  # else it was not even prefilled
            assert session.past.lengths[index] == part.prompt_tokens + len(part.token_ids) - 1
    assert session.open_iterators == 0


def test_a_stream_that_is_closed_early(tokenizer: Tokenizer) -> None:
    session = GreedyFakeSession()
    model = LanguageModel(session, tokenizer)
    whole = LanguageModel(FakeSession(), tokenizer).generate("Once", max_new_tokens=50, speculation="off")
    stream = model.stream("Once", max_new_tokens=50, speculation="off")
    pieces = list(itertools.islice(stream, 3))
    stream.close()
    found = stream.result[0]
    assert found.finish_reason == "interrupted" and found.text == "".join(pieces)
    assert found.token_ids == whole[0].token_ids[: len(found.token_ids)]
    assert session.past.lengths.tolist() == [found.prompt_tokens + len(found.token_ids) - 1]
    del stream
    assert session.open_iterators == 0
    again = model.generate("Once", max_new_tokens=50, speculation="off")
    assert again.generations == whole.generations


@pytest.mark.parametrize("pieces", [1, 4])
def test_a_stream_whose_past_was_taken_over_says_so(tokenizer: Tokenizer, pieces: int) -> None:
    model = LanguageModel(GreedyFakeSession(), tokenizer)
    stream = model.stream("Once", max_new_tokens=50, ignore_eos=True, speculation="off")
    for _ in range(pieces):
        next(stream)
    model.generate("x", max_new_tokens=2)
    with pytest.raises(GenerationError, match="taken its keys and values over"):
        list(stream)


def test_an_error_of_the_session_ends_the_request(tokenizer: Tokenizer) -> None:
    class Broken(GreedyFakeSession):
        def greedy(self, input_ids: Any, past: Any) -> Any:
            for number, ids in enumerate(super().greedy(input_ids, past)):
                if number == 4:
                    raise GenerationError("The model gave no usable logits")
                yield ids

    session = Broken()
    with pytest.raises(GenerationError, match="no usable logits"):
        LanguageModel(session, tokenizer).generate("x", max_new_tokens=50, ignore_eos=True, speculation="off")
    assert session.open_iterators == 0


def test_steps_are_forgotten_at_once_when_something_fails(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when the last frame that knows of them is gone, which an error's traceback holds."""
    session = GreedyFakeSession()
    accept, calls = Row.accept_token, 0

    def fail_third(row: Row, token_id: int) -> int:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("of ours")
        return accept(row, token_id)

    monkeypatch.setattr(Row, "accept_token", fail_third)
    with pytest.raises(RuntimeError, match="of ours") as caught:
        LanguageModel(session, tokenizer).generate("x", max_new_tokens=50, speculation="off")
    assert caught.value.__traceback__ is not None and session.open_iterators == 0


def test_timings_add_up(tokenizer: Tokenizer) -> None:
    model = LanguageModel(GreedyFakeSession(), tokenizer)
    for streams in (None, lambda _index, _text: None):
        result = model.generate(PROMPTS[:2], max_new_tokens=5, ignore_eos=True, speculation="off", on_text=streams)
        times = result.timings
        assert times.decode_tokens_per_second * times.decode_seconds == pytest.approx(2 * 4)
        assert times.prefill_seconds + times.decode_seconds <= times.total_seconds
        assert np.isfinite(times.decode_seconds) and times.decode_seconds > 0
