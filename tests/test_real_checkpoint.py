"""The published weights of kyutai/helium-1-preview-2b, where HELIUM_CHECKPOINT names their folder.

Golden values: float32 logits and greedy tokens of the published checkpoint, made once with transformers.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import helium_onnx
from helium_onnx.runtimes.onnxruntime_session import OnnxRuntimeSession

IDS = [1, 4000, 1880, 369, 497]  # "Once upon a time"
TOP_IDS = [362, 502, 371, 719, 402, 369, 4667, 365, 377, 364]
TOP_LOGITS = [
    14.3206205, 13.0502253, 12.5199404, 10.8119965, 10.7497206,
    10.6506853, 10.2515774, 10.0431232, 9.8208504, 9.2904510,
]  # fmt: skip
GREEDY = [362, 502, 387, 369, 1394, 7061, 1401, 7825, 364, 812, 387, 369, 666, 12690, 7061, 362, 370, 673, 1272, 3130]
TEXT = ", there was a little girl named Alice. She was a very curious girl, and she always wanted"

pytestmark = pytest.mark.skipif("HELIUM_CHECKPOINT" not in os.environ, reason="HELIUM_CHECKPOINT is not set")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> helium_onnx.LanguageModel:
    out = tmp_path_factory.mktemp("real") / "bundle"
    helium_onnx.export(Path(os.environ["HELIUM_CHECKPOINT"]), out, recipe="cpu-fp32")
    return helium_onnx.load(out, context_length=64, cache=False)


def test_tokenizer_gives_the_published_ids(model: helium_onnx.LanguageModel) -> None:
    assert model.tokenizer.encode("Once upon a time") == IDS


def test_logits_equal_the_published_ones(model: helium_onnx.LanguageModel) -> None:
    session = model.session
    assert isinstance(session, OnnxRuntimeSession)
    logits = session.run("prefill", np.array([IDS]), session.new_past(1))[0, 0]
    assert np.argsort(-logits)[:10].tolist() == TOP_IDS
    np.testing.assert_allclose(logits[TOP_IDS], TOP_LOGITS, atol=1e-3)


def test_greedy_text_equals_the_published_one(model: helium_onnx.LanguageModel) -> None:
    result = model.generate("Once upon a time", max_new_tokens=20)
    assert list(result[0].token_ids) == GREEDY
    assert result.text == TEXT
