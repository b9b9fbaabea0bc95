"""The loop over a fake session: batches, ends and interruptions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_session import FakeSession

from helium_onnx.errors import GenerationError
from helium_onnx.generation.model import LanguageModel
from helium_onnx.tokenizer import Tokenizer

PROMPTS = ["Once upon a time", "", "To insert a table in a text document, choose", "Où est-il ?\nIci"]


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.2, "top_k": 50, "seed": 5}, {"repetition_penalty": 1.3, "logprobs": 2}], ids=str
)
def test_a_prompt_in_a_batch_gets_the_tokens_of_the_prompt_alone(tokenizer: Tokenizer, options: dict[str, Any]) -> None:
    model = LanguageModel(FakeSession(), tokenizer)
    together = model.generate(PROMPTS, max_new_tokens=12, **options)
    # Only row 0 has the single prompt's random stream, so each prompt takes its turn there.
    for index, prompt in enumerate(PROMPTS):
        alone = model.generate(prompt, max_new_tokens=12, **options)[0]
        if options.get("temperature"):
            rotated = model.generate([prompt, *PROMPTS], max_new_tokens=12, **options)[0]
            assert rotated == alone
        else:
            assert together[index] == alone
    assert len({generation.token_ids for generation in together}) == len(PROMPTS)


def test_equal_prompts_of_a_sampled_batch_differ_and_the_seed_repeats_them(tokenizer: Tokenizer) -> None:
    model = LanguageModel(FakeSession(), tokenizer)
    first = model.generate(["a"] * 3, max_new_tokens=8, temperature=2.0)
    assert len({generation.token_ids for generation in first}) == 3
    assert len({generation.seed for generation in first}) == 1
    again = model.generate(["a"] * 3, max_new_tokens=8, temperature=2.0, seed=first[0].seed)
    assert again.generations == first.generations


def test_each_prompt_is_prefilled_alone_and_the_last_token_is_never_run(tokenizer: Tokenizer) -> None:
    session = FakeSession()
    result = LanguageModel(session, tokenizer).generate(PROMPTS[:2], max_new_tokens=3, ignore_eos=True)
    first, second = (generation.token_ids for generation in result)
    assert session.calls == [
        ("prefill", [tokenizer.encode(PROMPTS[0])]),
        ("prefill", [[1]]),
        ("decode", [[first[0]], [second[0]]]),
        ("decode", [[first[1]], [second[1]]]),
    ]


def test_an_ended_row_never_grows_and_the_loop_ends_with_the_last_row(tokenizer: Tokenizer) -> None:
    prompts = ["x", PROMPTS[2]]
    longest = len(tokenizer.encode(prompts[1]))
    plain = FakeSession(context_length=longest + 20)
    model = LanguageModel(plain, tokenizer)
    alone = model.generate(prompts[0], max_new_tokens=20, ignore_eos=True)[0]
    other = model.generate(prompts[1], max_new_tokens=20, ignore_eos=True)[0]
    # The text of one token ends the first row only.
    stop = tokenizer.id_to_text(alone.token_ids[4]).strip()
    assert stop in alone.text
    assert stop not in other.text
    plain.calls.clear()
    both = model.generate(prompts, max_new_tokens=20, stop=stop, ignore_eos=True)
    assert both[0].finish_reason == "stop"
    assert both[1] == other
    assert plain.past.lengths.tolist() == [
        len(tokenizer.encode("x")) + len(both[0].token_ids) - 1,
        longest + len(both[1].token_ids) - 1,
    ]
    assert len(plain.calls) == 2 + 19
    plain.calls.clear()
    model.generate(["x", "x"], max_new_tokens=20, stop=stop, ignore_eos=True)
    assert len(plain.calls) == 2 + len(both[0].token_ids) - 1


def test_eos_is_a_token_and_no_text(tokenizer: Tokenizer) -> None:
    a, b = tokenizer.encode("a b", add_bos=False)
    model = LanguageModel(FakeSession(script=[a, 2, b]), tokenizer)
    ended = model.generate("x", max_new_tokens=3)[0]
    assert (ended.text, ended.token_ids, ended.finish_reason, ended.prompt_tokens) == (" a", (a, 2), "eos", 2)
    ignored = model.generate("x", max_new_tokens=3, ignore_eos=True)[0]
    assert (ignored.text, ignored.token_ids, ignored.finish_reason) == (" a b", (a, 2, b), "length")
    at_once = LanguageModel(FakeSession(script=[2]), tokenizer).generate("x")[0]
    assert (at_once.text, at_once.token_ids, at_once.finish_reason) == ("", (2,), "eos")


def test_a_stop_string_cuts_the_text_and_keeps_the_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one two three four", add_bos=False)
    session = FakeSession(script=ids)
    seen: list[str] = []
    result = LanguageModel(session, tokenizer).generate(
        "x", stop=["wo th", "four"], max_new_tokens=40, logprobs=1, on_text=lambda _, text: seen.append(text)
    )[0]
    assert (result.text, result.finish_reason, result.stop) == (" one t", "stop", "wo th")
    assert result.token_ids == tuple(ids[: len(result.token_ids)])
    assert "wo th" in tokenizer.decode(result.token_ids)
    assert "".join(seen) == " one t"
    assert result.logprobs is not None
    assert [entry.token_id for entry in result.logprobs] == list(result.token_ids)


@pytest.mark.parametrize("ending", [[], [2]])
def test_a_stop_string_still_open_at_the_end_counts(tokenizer: Tokenizer, ending: list[int]) -> None:
    ids = [*tokenizer.encode("one", add_bos=False), 14, *ending]
    model = LanguageModel(FakeSession(script=ids), tokenizer)
    result = model.generate("x", stop=["\n", "\n\n"], max_new_tokens=len(ids))[0]
    assert (result.text, result.finish_reason, result.stop) == (" one", "stop", "\n")


def test_a_withheld_tail_that_was_no_stop_string_is_shown_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one two", add_bos=False)
    model = LanguageModel(FakeSession(script=[*ids, 2]), tokenizer)
    seen: list[str] = []
    result = model.generate("x", stop="two three", on_text=lambda _, text: seen.append(text))[0]
    assert (result.text, result.finish_reason, result.stop) == (" one two", "eos", None)
    assert "".join(seen) == " one two"


def test_half_a_character_is_never_shown(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("日本", add_bos=False)[1:]
    assert len(ids) == 6
    result = LanguageModel(FakeSession(script=ids), tokenizer).generate("x", max_new_tokens=5)[0]
    assert (result.text, len(result.token_ids)) == ("日", 5)


def test_logprobs_are_those_of_the_model_and_name_their_tokens(tokenizer: Tokenizer) -> None:
    session = FakeSession(script=[300])
    entry = LanguageModel(session, tokenizer).generate("x", max_new_tokens=1, logprobs=3, temperature=5.0, top_k=1)[0]
    assert entry.logprobs is not None
    (first,) = entry.logprobs
    logits = session._logits[0, 0].astype(np.float64)
    expected = logits - np.log(np.exp(logits - 50).sum()) - 50
    assert [item.token_id for item in first.top] == np.argsort(-expected)[:3].tolist()
    assert [item.logprob for item in first.top] == pytest.approx(np.sort(expected)[::-1][:3].tolist(), abs=1e-9)
    assert (first.token_id, first.text, first.top[0].text) == (300, tokenizer.id_to_text(300), first.text)


@pytest.mark.parametrize("call", [1, 2, 3, 6])
def test_ctrl_c_keeps_what_was_generated(tokenizer: Tokenizer, call: int) -> None:
    complete = LanguageModel(FakeSession(), tokenizer).generate(PROMPTS[:2], max_new_tokens=10, ignore_eos=True)
    session = FakeSession()
    session.interrupt_at = call
    result = LanguageModel(session, tokenizer).generate(PROMPTS[:2], max_new_tokens=10, ignore_eos=True, logprobs=0)
    for index, (part, whole) in enumerate(zip(result, complete, strict=True)):
        assert part.finish_reason == "interrupted"
        assert len(part.token_ids) == max(call - 1, 1 - index)
        assert part.token_ids == whole.token_ids[: len(part.token_ids)]
        assert whole.text.startswith(part.text)
        assert part.logprobs is not None
        assert len(part.logprobs) == len(part.token_ids)
    assert result.timings.total_seconds > 0


def test_ctrl_c_before_there_is_anything_is_raised(tokenizer: Tokenizer) -> None:
    session = FakeSession()
    session.interrupt_at = 0
    with pytest.raises(KeyboardInterrupt):
        LanguageModel(session, tokenizer).generate(PROMPTS)


def test_ctrl_c_while_text_is_shown_keeps_what_was_generated(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one two three", add_bos=False)
    seen: list[str] = []

    def show(_: int, text: str) -> None:
        seen.append(text)
        if len(seen) == 2:
            raise KeyboardInterrupt

    result = LanguageModel(FakeSession(script=ids), tokenizer).generate("x", on_text=show)
    assert result[0].finish_reason == "interrupted"
    assert result.text == "".join(seen) == tokenizer.decode([300, *ids[:2]])[len(tokenizer.decode([300])) :]


def test_logits_that_are_no_numbers_end_the_request(tokenizer: Tokenizer) -> None:
    session = FakeSession()
    run = session.run
    session.run = lambda *args: run(*args) * np.nan  # type: ignore[method-assign]
    with pytest.raises(GenerationError, match="6000 NaN among 6000"):
        LanguageModel(session, tokenizer).generate("x")


def test_timings_add_up(tokenizer: Tokenizer) -> None:
    result = LanguageModel(FakeSession(), tokenizer).generate(PROMPTS[:2], max_new_tokens=5, ignore_eos=True)
    times = result.timings
    prompt_tokens = sum(generation.prompt_tokens for generation in result)
    assert times.prefill_tokens_per_second * times.prefill_seconds == pytest.approx(prompt_tokens)
    assert times.decode_tokens_per_second * times.decode_seconds == pytest.approx(2 * 4)
    assert 0 < times.time_to_first_token_seconds <= times.total_seconds
    assert times.prefill_seconds + times.decode_seconds <= times.total_seconds
