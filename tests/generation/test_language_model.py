"""``LanguageModel``: what is refused before any work, and streams."""

from __future__ import annotations

from typing import Any

import pytest
from fake_session import FakeSession

from helium_onnx.errors import ContextOverflowError, GenerationError, PromptError, TokenizerError, UsageError
from helium_onnx.generation.model import LanguageModel
from helium_onnx.tokenizer import Tokenizer


@pytest.fixture
def session() -> FakeSession:
    return FakeSession(context_length=64)


@pytest.fixture
def model(session: FakeSession, tokenizer: Tokenizer) -> LanguageModel:
    return LanguageModel(session, tokenizer)


def test_another_vocabulary_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"6000 ids[\s\S]*6001"):
        LanguageModel(FakeSession(vocab_size=6001), tokenizer)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"max_new_tokens": 0}, UsageError, "max_new_tokens"),
        ({"max_new_tokens": 1.5}, UsageError, "max_new_tokens"),
        ({"max_new_tokens": True}, UsageError, "max_new_tokens"),
        ({"max_new_tokens": None}, UsageError, "max_new_tokens"),
        ({"logprobs": -1}, UsageError, "logprobs"),
        ({"stop": ""}, UsageError, "stop string"),
        ({"stop": ["a", ""]}, UsageError, "stop string"),
        ({"temperature": -1}, UsageError, "temperature"),
        ({"top_p": 0}, UsageError, "top_p"),
        ({"seed": 2**64}, UsageError, "seed"),
        ({"max_length": 3}, TypeError, "max_length"),
    ],
)
def test_bad_options_are_refused_before_any_work(
    model: LanguageModel, session: FakeSession, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        model.generate("x", **{"max_new_tokens": 8, **options})
    with pytest.raises(error, match=said):
        model.stream("x", **{"max_new_tokens": 8, **options})  # at the call, not at the first piece
    assert session.calls == []


def test_bad_prompts_are_refused_before_any_work(model: LanguageModel, session: FakeSession) -> None:
    bad: Any
    for bad in (None, 3, b"bytes", ["ok", 3], ["ok", "\ud800"]):
        with pytest.raises(PromptError):
            model.generate(bad)
    for bad in (None, ["a"], "\ud800"):
        with pytest.raises(PromptError):
            model.stream(bad)
    with pytest.raises(UsageError, match="no prompt"):
        model.generate([])
    assert session.calls == []


def test_an_overflow_says_what_would_fit(model: LanguageModel, session: FakeSession) -> None:
    prompt = "a" + " b" * 30
    assert len(model.tokenizer.encode(prompt)) == 32
    with pytest.raises(ContextOverflowError, match=r"Prompt 1 [\s\S]*32 prompt tokens and max_new_tokens=33[\s\S]*=32"):
        model.generate(["x", prompt], max_new_tokens=33)
    assert session.calls == []
    assert len(model.generate(prompt, max_new_tokens=32, ignore_eos=True)[0].token_ids) == 32
    with pytest.raises(ContextOverflowError, match=r"64 prompt tokens[\s\S]*at most 63 of a context of 64"):
        model.generate("a" + " b" * 62, max_new_tokens=1)


def test_control_tokens_of_a_prompt_are_text_unless_asked_for(model: LanguageModel, session: FakeSession) -> None:
    model.generate("a</s>", max_new_tokens=1)
    model.generate("a</s>", max_new_tokens=1, parse_special=True)
    plain, special = (ids[0] for _, ids in session.calls)
    assert 2 not in plain
    assert special[-1] == 2


def test_a_stream_gives_the_text_of_generate_in_pieces(model: LanguageModel) -> None:
    options: dict[str, Any] = {"max_new_tokens": 20, "temperature": 1.0, "seed": 3, "logprobs": 1}
    whole = model.generate("Once upon a time", **options)
    stream = model.stream("Once upon a time", **options)
    pieces = list(stream)
    assert "".join(pieces) == whole.text == stream.result.text
    assert len(pieces) > 3
    assert all(pieces)
    assert stream.result.generations == whole.generations
    assert next(stream, None) is None


def test_a_stream_computes_no_more_than_is_read(model: LanguageModel, session: FakeSession) -> None:
    stream = model.stream("Once", max_new_tokens=50)
    assert session.calls == []
    with pytest.raises(GenerationError, match="not there yet"):
        _ = stream.result
    first = next(stream)
    calls = len(session.calls)
    assert calls < 50
    stream.close()
    stream.close()
    assert stream.result[0].finish_reason == "interrupted"
    assert stream.result.text == first
    assert list(stream) == []
    assert len(session.calls) == calls


def test_ctrl_c_in_a_stream_is_raised_and_the_result_is_there(model: LanguageModel, session: FakeSession) -> None:
    session.interrupt_at = 3
    seen: list[str] = []
    with pytest.raises(KeyboardInterrupt), model.stream("Once", max_new_tokens=50) as stream:
        seen.extend(iter(stream))
    assert stream.result[0].finish_reason == "interrupted"
    assert len(stream.result[0].token_ids) == 3


def test_a_stream_whose_past_was_taken_over_says_so(model: LanguageModel) -> None:
    stream = model.stream("Once", max_new_tokens=50, ignore_eos=True)
    next(stream)
    model.generate("x", max_new_tokens=2)
    with pytest.raises(GenerationError, match="taken its keys and values over"):
        list(stream)


def test_closing_closes_a_session_that_can_be_closed(tokenizer: Tokenizer) -> None:
    class Closable(FakeSession):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    session = Closable()
    with LanguageModel(session, tokenizer) as model:
        assert model.generate("x", max_new_tokens=1).text is not None
        assert session.closed == 0
    assert session.closed == 1
    LanguageModel(FakeSession(), tokenizer).close()
