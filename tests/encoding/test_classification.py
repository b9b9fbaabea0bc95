"""TextClassifier: scores as transformers makes them, ranks, batches, a model without a pad token."""

from __future__ import annotations

from pathlib import Path

import fake_texts
import numpy as np
import pytest
import torch
from fake_texts import FakeTexts
from numpy.typing import NDArray

from helium_onnx.encoding.classification import Label, TextClassifier
from helium_onnx.errors import UsageError

NAMES = {"0": "de", "1": "en", "2": "fr"}
LOGITS = np.array([0.5, 3.0, -1.0], np.float32)


def logits(_: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
    """The row's number of tokens moves them."""
    return (LOGITS * mask.sum(1, keepdims=True)).astype(np.float32)


def classifier(folder: Path, session: FakeTexts | None = None, **fields: object) -> TextClassifier:
    config = fake_texts.config("HeliumForSequenceClassification", id2label=NAMES, **fields)
    return TextClassifier(session or FakeTexts(logits), fake_texts.tokenizer(folder), config)


def test_the_likeliest_first(tmp_path: Path) -> None:
    model = classifier(tmp_path)
    tokens = len(model.tokenizer.encode("Once"))
    scores = torch.softmax(torch.from_numpy(LOGITS * tokens), 0)
    found = model.classify("Once", top_k=None)
    assert [one.label for one in found] == ["en", "de", "fr"]
    assert [one.score for one in found] == pytest.approx(scores[[1, 0, 2]].tolist())
    assert model.classify(["Once", "the"], top_k=1) == [[found[0]], model.classify("the")]
    assert model.classify("Once", top_k=99) == found
    assert model.labels == ("de", "en", "fr")


def test_scores_of_each_kind(tmp_path: Path) -> None:
    session = FakeTexts(lambda ids, _: np.tile(np.array([[0.0, 200.0, -200.0]], np.float32), (len(ids), 1)))
    several = classifier(tmp_path, session, problem_type="multi_label_classification").classify("Once", top_k=None)
    assert several == [Label("en", 1.0), Label("de", 0.5), Label("fr", 0.0)]
    values = classifier(tmp_path, session, problem_type="regression").classify("Once", top_k=None)
    assert [one.score for one in values] == [200.0, 0.0, -200.0]
    assert classifier(tmp_path, session).classify("Once")[0].score == pytest.approx(1.0)


def test_equal_scores_keep_the_labels_order(tmp_path: Path) -> None:
    session = FakeTexts(lambda ids, _: np.zeros((len(ids), 3), np.float32))
    assert [one.label for one in classifier(tmp_path, session).classify("Once", top_k=None)] == ["de", "en", "fr"]


def test_without_a_pad_token_one_text_at_a_time(tmp_path: Path) -> None:
    model = classifier(tmp_path, pad_token_id=None)
    assert model.max_rows == 1
    assert model.classify("Once") == model.classify(["Once"])[0]
    with pytest.raises(UsageError, match="several texts at once") as caught:
        model.classify(["Once", "the"])
    assert "pad_token_id" in str(caught.value)


def test_no_label_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="top_k"):
        classifier(tmp_path).classify("Once", top_k=0)
