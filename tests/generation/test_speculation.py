"""Drafts change the number of steps and nothing else: tokens, texts, ends, log-probabilities, interruptions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_session import ChunkedSession, FakeSession, LoopingSession

from helium_onnx.errors import GenerationError, TokenizerError, UsageError
from helium_onnx.generation import speculation
from helium_onnx.generation.draft_length import DraftLength
from helium_onnx.generation.loop import Loop
from helium_onnx.generation.model import LanguageModel
from helium_onnx.generation.prompt_lookup import MATCH_PRIORS, PromptLookup
from helium_onnx.generation.request import Request
from helium_onnx.generation.result import GenerationResult
from helium_onnx.generation.sampling import SamplingOptions
from helium_onnx.generation.speculation import Speculation
from helium_onnx.tokenizer import Tokenizer

PROMPT = "one two three one two three one two three"
OPTIONS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.3},
    {"logprobs": 2},
    {"temperature": 0.7, "seed": 5},
    {"temperature": 1.2, "top_k": 5, "top_p": 0.9, "repetition_penalty": 1.1, "seed": 6, "logprobs": 1},
]


@pytest.fixture
def drafts(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the length of all drafts, whatever they take and gain. Each step is asked for one."""
    monkeypatch.setattr(speculation, "_LONGEST_PAUSE", 0)

    def use(length: int) -> None:
        monkeypatch.setattr(DraftLength, "choose", lambda _, __, most, **___: min(most, length))
        monkeypatch.setattr(DraftLength, "record_draft", lambda *_: None)

    return use


@pytest.fixture(params=["prompt-lookup", "draft-model", "wrong-draft-model"])
def make(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Callable[..., LanguageModel]:
    """A model that speculates in one of the ways, over a LoopingSession of the given options."""

    def model(**options: Any) -> LanguageModel:
        target, draft = LoopingSession(**options), None
        if request.param != "prompt-lookup":
            noise = 0 if request.param == "draft-model" else 1
            draft = LanguageModel(LoopingSession(noise=noise, **options), tokenizer)
        return LanguageModel(target, tokenizer, draft=draft)

    return model


def same_but_for_speed(fast: GenerationResult, plain: GenerationResult) -> bool:
    return fast.generations == plain.generations


def widths(model: LanguageModel) -> list[int]:
    """Tokens in each decode call."""
    assert isinstance(model.session, FakeSession)
    return [len(ids[0]) for phase, ids in model.session.calls if phase == "decode"]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("length", [1, 4, 16])
def test_tokens_are_those_of_plain_decoding(
    make: Callable[..., LanguageModel],
    tokenizer: Tokenizer,
    drafts: Callable[[int], None],
    options: dict[str, Any],
    length: int,
) -> None:
    drafts(length)
    model = make()
    if options.get("temperature") and model._draft is not None:
        return  # the same distribution, not the same draws: test_rejection.py
    fast = model.generate(PROMPT, max_new_tokens=120, **options)
    plain = LanguageModel(LoopingSession(), tokenizer).generate(
        PROMPT, max_new_tokens=120, speculation="off", **options
    )
    assert same_but_for_speed(fast, plain)
    assert plain.speculation is None
    found = fast.speculation
    assert found is not None
    assert found.method == ("prompt-lookup" if model._draft is None else "draft-model")
    assert found.steps == len(widths(model))
    assert found.drafting_steps == sum(width > 1 for width in widths(model))
    assert found.drafted == sum(widths(model)) - found.steps
    assert found.accepted == 119 - found.steps  # each step gives one token more than was accepted
    assert found.tokens_per_step == 119 / found.steps
    assert max(widths(model)) == length + 1


@pytest.mark.parametrize("length", [3, 16])
def test_the_past_holds_what_was_accepted(
    make: Callable[..., LanguageModel], drafts: Callable[[int], None], length: int
) -> None:
    drafts(length)
    model = make()
    result = model.generate(PROMPT, max_new_tokens=50)
    past = model.session.past  # type: ignore[attr-defined]
    ids = [*model.tokenizer.encode(PROMPT), *result[0].token_ids]
    assert past.lengths.tolist() == [len(ids) - 1]
    assert past.rows[0][0][: len(ids) - 1] == ids[:-1]


@pytest.mark.parametrize("limit", [1, 2, 3, 17, 40])
def test_nothing_is_drafted_beyond_the_limit_or_the_context(
    make: Callable[..., LanguageModel], drafts: Callable[[int], None], limit: int
) -> None:
    drafts(16)
    prompt_tokens = 10
    model = make(context_length=prompt_tokens + limit)  # FakeSession asserts that no call goes beyond it
    assert len(model.tokenizer.encode(PROMPT)) == prompt_tokens
    result = model.generate(PROMPT, max_new_tokens=limit)[0]
    assert (len(result.token_ids), result.finish_reason) == (limit, "length")
    assert sum(widths(model)) - len(widths(model)) <= 16 * limit


def test_eos_within_a_draft_ends_the_text(
    make: Callable[..., LanguageModel], tokenizer: Tokenizer, drafts: Callable[[int], None]
) -> None:
    drafts(8)
    script = tokenizer.encode("one two three one two three one two three one two", add_bos=False)
    model = make(script=[*script, 2, *script])
    result = model.generate("x", max_new_tokens=80)
    assert result[0].token_ids == (*script, 2)
    assert result[0].finish_reason == "eos"
    assert model.session.past.lengths.tolist() == [2 + len(script)]  # type: ignore[attr-defined]
    ignored = model.generate("x", max_new_tokens=len(script) + 5, ignore_eos=True)[0]
    assert ignored.token_ids == (*script, 2, *script[:4])


def test_a_stop_string_within_a_draft_ends_the_text(
    make: Callable[..., LanguageModel], tokenizer: Tokenizer, drafts: Callable[[int], None]
) -> None:
    drafts(16)
    script = tokenizer.encode("one two three one two three one two three four five six", add_bos=False)
    for stop in ("three four", "three one", ["ee o", "two three four f"]):
        fast = make(script=script).generate("x", stop=stop, max_new_tokens=60, logprobs=0)
        plain = LanguageModel(LoopingSession(script=script), tokenizer).generate(
            "x", stop=stop, max_new_tokens=60, logprobs=0, speculation="off"
        )
        assert same_but_for_speed(fast, plain)
        assert fast[0].finish_reason == "stop"
        assert fast[0].logprobs is not None and len(fast[0].logprobs) == len(fast[0].token_ids)


def test_a_stream_gives_the_whole_text(make: Callable[..., LanguageModel], drafts: Callable[[int], None]) -> None:
    drafts(5)
    model = make()
    whole = model.generate(PROMPT, max_new_tokens=100)
    stream = model.stream(PROMPT, max_new_tokens=100)
    pieces = list(stream)
    assert "".join(pieces) == stream.result.text == whole.text
    assert len(pieces) <= whole.speculation.steps + 1  # type: ignore[union-attr]


def test_ctrl_c_keeps_what_was_accepted(make: Callable[..., LanguageModel], drafts: Callable[[int], None]) -> None:
    drafts(4)
    whole = make().generate(PROMPT, max_new_tokens=60, logprobs=0)[0]
    for call in (1, 2, 3, 7):
        for interrupted in ("session", "draft"):
            model = make()
            if interrupted == "draft" and model._draft is None:
                continue
            session = model.session if interrupted == "session" else model._draft.session  # type: ignore[union-attr]
            session.interrupt_at = call  # type: ignore[attr-defined]
            shown: list[str] = []
            part = model.generate(
                PROMPT, max_new_tokens=60, logprobs=0, on_text=lambda _, text, shown=shown: shown.append(text)
            )[0]
            assert part.finish_reason == "interrupted"
            assert part.token_ids == whole.token_ids[: len(part.token_ids)]
            assert part.text == "".join(shown) == whole.text[: len(part.text)]
            assert part.logprobs == whole.logprobs[: len(part.token_ids)]  # type: ignore[index]
            ids = [*model.tokenizer.encode(PROMPT), *part.token_ids]
            past = model.session.past  # type: ignore[attr-defined]
            assert past.rows[0][0][: past.lengths[0]] == ids[: past.lengths[0]]


def test_ctrl_c_while_tokens_are_accepted_shows_each_of_them_once(
    tokenizer: Tokenizer, drafts: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    drafts(8)
    script = tokenizer.encode("one two three " * 6, add_bos=False)
    real = Tokenizer.token_bytes
    for last in range(10, 24):
        seen = 0

        def token_bytes(self: Tokenizer, token_id: int, last: int = last) -> bytes:
            nonlocal seen
            seen += 1
            if seen == last:
                raise KeyboardInterrupt
            return real(self, token_id)

        monkeypatch.setattr(Tokenizer, "token_bytes", token_bytes)
        shown: list[str] = []
        model = LanguageModel(LoopingSession(script=script), tokenizer)
        result = model.generate("x", max_new_tokens=30, on_text=lambda _, text, shown=shown: shown.append(text))
        monkeypatch.setattr(Tokenizer, "token_bytes", real)
        assert result[0].finish_reason == "interrupted"
        assert "".join(shown) == result.text
        ids = [*tokenizer.encode("x"), *result[0].token_ids]
        past = model.session.past  # type: ignore[attr-defined]
        assert past.rows[0][0][: past.lengths[0]] == ids[: past.lengths[0]]


# When


def test_by_default_it_is_used_where_it_changes_nothing(tokenizer: Tokenizer, drafts: Callable[[int], None]) -> None:
    drafts(4)

    def method(session: FakeSession, prompts: str | list[str] = PROMPT, **options: Any) -> str | None:
        found = LanguageModel(session, tokenizer).generate(prompts, max_new_tokens=4, **options).speculation
        return None if found is None else found.method

    assert method(LoopingSession()) == "prompt-lookup"
    assert method(LoopingSession(), speculation="off") is None
    assert method(ChunkedSession()) is None
    assert method(ChunkedSession(), speculation="prompt-lookup") == "prompt-lookup"
    for choice in ("auto", "prompt-lookup"):
        assert method(LoopingSession(), [PROMPT, PROMPT], speculation=choice) is None  # verification takes one row
    assert method(LoopingSession(), [PROMPT], speculation="auto") == "prompt-lookup"


def test_a_draft_model_is_used_unless_something_else_is_asked_for(
    tokenizer: Tokenizer, drafts: Callable[[int], None]
) -> None:
    drafts(4)
    for session in (LoopingSession(), ChunkedSession()):
        model = LanguageModel(session, tokenizer, draft=LanguageModel(LoopingSession(), tokenizer))
        for choice, method in (("auto", "draft-model"), ("prompt-lookup", "prompt-lookup")):
            found = model.generate(PROMPT, max_new_tokens=4, speculation=choice).speculation
            assert found is not None and found.method == method
        assert model.generate(PROMPT, max_new_tokens=4, speculation="off").speculation is None
        assert model.generate([PROMPT] * 2, max_new_tokens=4).speculation is None


@pytest.mark.parametrize("choice", ["on", "", None, 1])
def test_another_choice_is_refused(tokenizer: Tokenizer, choice: Any) -> None:
    with pytest.raises(UsageError, match=r"speculation[\s\S]*auto, off, prompt-lookup"):
        LanguageModel(FakeSession(), tokenizer).generate("x", speculation=choice)


# The draft model


def test_another_tokenizer_is_refused(tokenizer: Tokenizer, sample_checkpoint: Path) -> None:
    other = Tokenizer.from_folder(sample_checkpoint, vocab_size=6000, bos_token_id=1, eos_token_ids=(2,))
    LanguageModel(FakeSession(), tokenizer, draft=LanguageModel(FakeSession(), other))
    other._json = other._json.replace("\\u2581the", "\\u2581thf", 1)
    with pytest.raises(TokenizerError, match="another tokenizer"):
        LanguageModel(FakeSession(), tokenizer, draft=LanguageModel(FakeSession(), other))


def test_a_draft_models_past_follows_the_text(tokenizer: Tokenizer, drafts: Callable[[int], None]) -> None:
    """Each draft continues the text itself: what the draft model was fed is the text and its own draft."""
    drafts(4)
    draft = LoopingSession(noise=1)
    model = LanguageModel(LoopingSession(), tokenizer, draft=LanguageModel(draft, tokenizer))
    fed: list[list[int]] = []
    real = draft.run

    def run(phase: Any, input_ids: Any, past: Any) -> Any:
        logits = real(phase, input_ids, past)
        fed.append(past.rows[0][0][: past.lengths[0]])
        return logits

    draft.run = run  # type: ignore[method-assign]
    result = model.generate(PROMPT, max_new_tokens=60)
    text = [*tokenizer.encode(PROMPT), *result[0].token_ids]
    assert result.speculation is not None and 0 < result.speculation.accepted < result.speculation.drafted
    prompt_tokens = len(tokenizer.encode(PROMPT))
    assert fed[0] == text[:prompt_tokens]
    for ids in fed:
        shared = next((i for i, (a, b) in enumerate(zip(ids, text, strict=False)) if a != b), len(ids))
        assert len(ids) - shared <= 3  # of a draft of four, all but the last are fed
    assert {len(ids[0]) for phase, ids in draft.calls if phase == "decode"} <= {1, 2}


def test_a_draft_model_of_a_shorter_context_stops_drafting(tokenizer: Tokenizer, drafts: Callable[[int], None]) -> None:
    drafts(4)
    draft = LanguageModel(LoopingSession(context_length=64), tokenizer)
    model = LanguageModel(LoopingSession(), tokenizer, draft=draft)
    result = model.generate(PROMPT, max_new_tokens=150)
    plain = model.generate(PROMPT, max_new_tokens=150, speculation="off")
    assert same_but_for_speed(result, plain)
    assert result.speculation is not None and result.speculation.drafted > 0
    assert widths(model)[-80:] == [1] * 80


def test_a_draft_model_catches_up_after_plain_steps(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: Iterator[int] = iter([0] * 30 + [3] + [0] * 5 + [3] * 100)
    setup: list[float] = []

    def choose(_: object, __: int, most: int, *, setup_seconds: float, **___: float) -> int:
        setup.append(setup_seconds)
        return min(most, next(chosen))

    monkeypatch.setattr(DraftLength, "choose", choose)
    monkeypatch.setattr(DraftLength, "record_draft", lambda *_: None)
    draft = LoopingSession()
    model = LanguageModel(LoopingSession(), tokenizer, draft=LanguageModel(draft, tokenizer))
    result = model.generate(PROMPT, max_new_tokens=80)
    assert result.speculation is not None and result.speculation.accepted == result.speculation.drafted > 0
    first_phases = [(phase, len(ids[0])) for phase, ids in draft.calls][:5]
    assert first_phases == [("prefill", 10 + 30), ("decode", 1), ("decode", 1), ("decode", 1), ("decode", 7)]
    assert setup[0] == 0.0 and setup[36] > 0.0  # five tokens more than a draft always begins with


def test_closing_closes_the_draft_model_too(tokenizer: Tokenizer) -> None:
    class Closable(FakeSession):
        closed = False

        def close(self) -> None:
            self.closed = True

    target, draft = Closable(), Closable()
    LanguageModel(target, tokenizer, draft=LanguageModel(draft, tokenizer)).close()
    assert target.closed and draft.closed


def test_draft_logits_that_are_no_numbers_are_an_error(tokenizer: Tokenizer, drafts: Callable[[int], None]) -> None:
    drafts(2)
    draft = LoopingSession()
    run = draft.run
    draft.run = lambda *args: run(*args) * np.nan  # type: ignore[method-assign]
    model = LanguageModel(LoopingSession(), tokenizer, draft=LanguageModel(draft, tokenizer))
    with pytest.raises(GenerationError, match="no usable logits"):
        model.generate(PROMPT)


# Time


def test_reading_the_prompt_is_no_part_of_a_drafts_price(tokenizer: Tokenizer, drafts: Callable[[int], None]) -> None:
    drafts(4)
    model = LanguageModel(LoopingSession(), tokenizer, draft=LanguageModel(LoopingSession(), tokenizer))
    times = model.generate(PROMPT, max_new_tokens=40).timings
    assert times.decode_tokens_per_second * times.decode_seconds == pytest.approx(39)
    assert times.prefill_seconds + times.decode_seconds <= times.total_seconds
    assert model._draft_times.token.seconds > 0
    assert model._draft_times.prefill_token.seconds > 0


@pytest.mark.parametrize(("order", "least", "most"), [(2, 0.0, 0.45), (20, 0.99, 1.03)], ids=["looping", "random"])
def test_with_a_clock_that_is_simulated_it_pays_or_costs_little(
    tokenizer: Tokenizer, order: int, least: float, most: float
) -> None:
    """The loop with its own choice of lengths; each further token of a step takes a tenth of a plain step."""
    now = 0.0

    class Timed(LoopingSession):
        def run(self, phase: Any, input_ids: Any, past: Any) -> Any:
            nonlocal now
            now += 1 + 0.1 * (input_ids.shape[1] - 1)
            return super().run(phase, input_ids, past)

    prompt_ids = tokenizer.encode("x")
    request = Request((prompt_ids,), 600, SamplingOptions(), (), None, True)
    drafting = Speculation(PromptLookup(), DraftLength(MATCH_PRIORS, makes_trials=False), clock=lambda: now)
    session = Timed(context_length=1000, order=order, likely=5000 if order > 2 else 40)
    loop = Loop(
        session, tokenizer, request, is_current=lambda: True, speculation=drafting, clock=lambda: now
    )  # fmt: skip
    list(loop.events())
    result = loop.result()
    assert least <= result.timings.decode_seconds / 599 <= most
    assert result.timings.decode_seconds + result.timings.prefill_seconds == pytest.approx(now)
