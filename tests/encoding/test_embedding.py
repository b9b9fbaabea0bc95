"""EmbeddingModel over a session whose states are known: pooling, order, batches, limits."""

from __future__ import annotations

from pathlib import Path

import fake_texts
import numpy as np
import pytest
from fake_texts import FakeTexts
from numpy.typing import NDArray

from helium_onnx.encoding.embedding import EmbeddingModel
from helium_onnx.errors import ContextOverflowError, GenerationError, PromptError, TokenizerError, UsageError

TEXTS = ["Once upon a time", "the", "", "a table in the time of Once", "Once"]


def states(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
    """Of padding something that would show."""
    places = np.arange(ids.shape[1])
    found = np.stack([ids + 0 * places, ids * places, 1 + 0 * ids], axis=-1).astype(np.float32)
    found[mask == 0] = 1e9
    return found


@pytest.fixture
def session() -> FakeTexts:
    return FakeTexts(states)


@pytest.fixture
def model(session: FakeTexts, tmp_path: Path) -> EmbeddingModel:
    return EmbeddingModel(session, fake_texts.tokenizer(tmp_path), fake_texts.config("HeliumModel"))


def alone(model: EmbeddingModel, text: str) -> NDArray[np.float32]:
    ids = np.array([model.tokenizer.encode(text)])
    return states(ids, np.ones_like(ids))[0]


def test_poolings(model: EmbeddingModel) -> None:
    for pooling, pool in (("mean", lambda x: x.mean(0)), ("last", lambda x: x[-1])):
        vectors = model.embed(TEXTS, pooling=pooling, normalize=False)  # type: ignore[call-overload]
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, np.stack([pool(alone(model, text)) for text in TEXTS]), rtol=1e-6)
    each = model.embed(TEXTS, pooling="none", normalize=False)
    for text, vectors in zip(TEXTS, each, strict=True):
        np.testing.assert_array_equal(vectors, alone(model, text))


def test_length_one(model: EmbeddingModel) -> None:
    assert np.linalg.norm(model.embed(TEXTS), axis=1) == pytest.approx(1)
    for vectors in model.embed(TEXTS, pooling="none"):
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)


def test_zeros_stay_zeros(model: EmbeddingModel, session: FakeTexts) -> None:
    session.output = lambda ids, _: np.zeros((*ids.shape, 3), np.float32)
    assert not model.embed(TEXTS).any()


def test_a_text_alone_has_no_row_axis(model: EmbeddingModel) -> None:
    np.testing.assert_array_equal(model.embed(TEXTS[0]), model.embed(TEXTS)[0])
    assert model.embed(TEXTS[0], pooling="none").shape == (len(model.tokenizer.encode(TEXTS[0])), 3)


def test_no_texts(model: EmbeddingModel, session: FakeTexts) -> None:
    assert model.embed([]).shape == (0, 64)
    assert model.embed([], pooling="none") == []
    assert session.calls == []


@pytest.mark.parametrize("batch_tokens", [1, 7, 16, 4096])
def test_batches_change_nothing(model: EmbeddingModel, session: FakeTexts, batch_tokens: int) -> None:
    expected = model.embed(TEXTS)
    session.calls.clear()
    np.testing.assert_array_equal(model.embed(TEXTS, batch_tokens=batch_tokens), expected)
    assert all(rows == 1 or rows * tokens <= batch_tokens for rows, tokens in session.calls)
    assert sum(rows for rows, _ in session.calls) == len(TEXTS)


def test_a_text_beyond_the_context(model: EmbeddingModel, session: FakeTexts) -> None:
    session.context_length = 4
    with pytest.raises(ContextOverflowError, match="text 1 does not fit") as caught:
        model.embed(TEXTS)
    assert caught.value.remedy is not None and "truncate" in caught.value.remedy
    vectors = model.embed(TEXTS, pooling="none", normalize=False, truncate=True)
    np.testing.assert_array_equal(vectors[0], alone(model, TEXTS[0])[:4])


def test_what_is_no_number_is_refused(model: EmbeddingModel, session: FakeTexts) -> None:
    session.output = lambda ids, _: np.full((*ids.shape, 3), np.nan, np.float32)
    with pytest.raises(GenerationError, match="no numbers"):
        model.embed("Once")


@pytest.mark.parametrize(
    ("texts", "options", "error"),
    [
        (["Once", 3], {}, PromptError),
        (["\ud800"], {}, PromptError),
        (["Once"], {"pooling": "max"}, UsageError),
        (["Once"], {"batch_tokens": -1}, UsageError),
    ],
)
def test_wrong_uses(
    model: EmbeddingModel, session: FakeTexts, texts: list[str], options: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        model.embed(texts, **options)  # type: ignore[call-overload]
    assert session.calls == []


def test_another_vocabulary(session: FakeTexts, tmp_path: Path) -> None:
    session.vocab_size = 5
    with pytest.raises(TokenizerError, match="does not fit"):
        EmbeddingModel(session, fake_texts.tokenizer(tmp_path), fake_texts.config("HeliumModel"))


def test_closing(model: EmbeddingModel, session: FakeTexts) -> None:
    with model:
        pass
    assert session.closed
