"""Graphs for CoreML, on ONNX Runtime's CPU: they compute what the model does. On Apple hardware also by CoreML."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import tiny
import torch
from static_bundles import small

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.checkpoint import Checkpoint
from helium_onnx.errors import ProviderError
from helium_onnx.modeling import HeliumForCausalLM
from helium_onnx.runtimes.providers import COREML
from helium_onnx.runtimes.static_session import StaticSession

SAMPLE = Path(__file__).parents[2] / "samples" / "helium-docs-7m"
PROMPT = "Pour insérer un tableau dans un document texte, choisissez Insertion - Tableau."
HERE = COREML.onnxruntime_name in ort.get_available_providers()


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return helium_onnx.export(SAMPLE, tmp_path_factory.mktemp("coreml") / "docs", recipe=small("coreml-fp16", 192, 16))


def text(path: Path, provider: str, count: int = 120) -> str:
    with contextlib.closing(helium_onnx.load(path, provider=provider)) as model:
        return model.generate(PROMPT, max_new_tokens=count, temperature=0).text


def test_the_samples_text_is_float32s(docs: Bundle, sample_bundle_fp32: Path) -> None:
    assert text(docs.path, "cpu") == text(sample_bundle_fp32, "cpu")


@pytest.mark.skipif(HERE, reason="this machine has CoreML")
def test_elsewhere_it_is_refused_in_a_sentence(docs: Bundle) -> None:
    with pytest.raises(ProviderError, match="the execution provider coreml cannot be loaded") as caught:
        helium_onnx.load(docs.path)
    assert "CoreMLExecutionProvider" in str(caught.value.found)
    assert "macOS" in str(caught.value.remedy) and "--provider cpu" in str(caught.value.remedy)


@pytest.mark.skipif(not HERE, reason="onnxruntime has CoreML on Apple's machines alone")
def test_coreml_gives_the_cpus_text(docs: Bundle) -> None:
    """``load`` requires that every node runs there."""
    assert text(docs.path, "coreml") == text(docs.path, "cpu")


@pytest.mark.parametrize("model_type", ["helium", "llama"])
def test_a_layer_of_full_width(model_type: str, tmp_path: Path) -> None:
    """PyTorch's logits within 1 % of the largest, in prefill of two chunks and in decode; with grouped heads too."""
    checkpoint = tiny.write_checkpoint(
        tmp_path / "checkpoint",
        model_type=model_type,
        std=0.02,
        hidden_size=2560,
        intermediate_size=7040,
        num_hidden_layers=1,
        num_attention_heads=20,
        num_key_value_heads=20 if model_type == "helium" else 5,
        head_dim=128,
    )
    bundle = helium_onnx.export(checkpoint, tmp_path / "bundle", recipe=small("coreml-fp16", 16, 4))
    ids = np.random.default_rng(0).integers(4, 320, (1, 8))
    model = HeliumForCausalLM.from_checkpoint(Checkpoint.open(checkpoint))
    with torch.inference_mode():
        whole = torch.from_numpy(ids)
        expected = model(whole, torch.ones_like(whole), model.empty_past())[0].numpy()
    with contextlib.closing(StaticSession(bundle, provider="cpu")) as session:
        past = session.new_past(1)
        found = [
            session.run("prefill", ids[:, :-1], past)[0, -1].copy(),
            session.run("decode", ids[:, -1:], past)[0, -1],
        ]
    for have, want in zip(found, expected[0, -2:], strict=True):
        assert np.abs(have - want).max() <= 1e-2 * np.abs(want).max()
