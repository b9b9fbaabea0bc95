"""The tasks without generation on a GPU: every output near float32's, ragged batches, and the heavy nodes there.

The reference is ``transformers`` in float32 on the CPU over the bundle's own weights, as far as they are quantized.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import reference
import task_models
import torch

import helium_onnx
from helium_onnx.evaluation.bundle_weights import BundleWeights
from helium_onnx.tasks import Task

#: Of the largest value. Eleven bits of mantissa give some 2e-3 over three layers, eight some 2e-2: what PyTorch itself
#: loses in these types is measured beside, and bounds both.
LENGTHS = (70, 64, 9, 33)
#: Rows of whole blocks of 64 weights.
SIZES = {"std": 0.12, "hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
DTYPES = {"cuda-fp16": torch.float16, "cuda-bf16": torch.bfloat16, "cuda-int4": torch.float16}


@pytest.mark.parametrize(
    ("task", "model_type", "recipe"), list(itertools.product(task_models.TEXT_TASKS, ("helium", "llama"), DTYPES))
)
def test_near_float32(task: Task, model_type: str, recipe: str, tmp_path: Path) -> None:
    model = task_models.make_model(task, model_type, **SIZES)
    folder = reference.save(model, tmp_path / "checkpoint")
    bundle = helium_onnx.export(folder, tmp_path / "out", recipe=recipe)
    weights, prefix = BundleWeights(bundle), "" if hasattr(model, "score") else "model."
    for name, parameter in model.named_parameters():
        if not name.startswith("score."):
            parameter.data = torch.from_numpy(weights.read(prefix + name))
    rows = [reference.random_ids(1, length, seed)[0] for seed, length in enumerate(LENGTHS)]
    ids, mask = reference.padded(rows, "right")
    exact = task_models.real(task_models.output_of(model, ids, mask), mask)
    half = task_models.real(task_models.output_of(model.to("cuda", DTYPES[recipe]), ids, mask), mask)
    with helium_onnx.load(bundle.path) as loaded:
        session = loaded.session
        assert session._session.get_providers()[0] == "CUDAExecutionProvider"  # type: ignore[union-attr]
        ours = task_models.real(session.run(ids, mask), mask)  # type: ignore[arg-type, call-arg]
        alone = session.run(ids[2:3, :9], mask[2:3, :9])[0]  # type: ignore[arg-type, call-arg]
    assert ours.dtype == np.float32
    error, theirs = reference.error(ours, exact), reference.error(half, exact)
    print(f"{task} {model_type} {recipe}: {error:.1e}, PyTorch {theirs:.1e}")
    assert error <= 2 * theirs + 1e-3
    together = ours[2] if task == "text-classification" else ours[mask[:2].sum() : mask[:3].sum()]
    assert np.abs(alone - together).max() <= (2 * theirs + 1e-3) * np.abs(exact).max()


def test_a_classifiers_labels(tmp_path: Path) -> None:
    """The sample's, on real weights: the labels of float32 on the CPU."""
    root = Path(__file__).parents[2]
    texts = ["Choisissez Fichier - Imprimer.", "Choose File - Print.", "Wählen Sie Datei - Drucken.", "Scegliete File."]
    labels = {}
    for recipe in ("cpu-fp32", "cuda-fp16", "cuda-bf16", "cuda-int4"):
        bundle = helium_onnx.export(
            root / "samples/helium-docs-7m",
            tmp_path / recipe,
            task="text-classification",
            adapter=root / "samples/classifiers/language-id",
            recipe=recipe,
        )
        with helium_onnx.load(bundle.path, task="text-classification") as model:
            labels[recipe] = [found[0].label for found in model.classify(texts)]
    assert labels["cpu-fp32"] == ["fr", "en", "de", "it"]
    assert labels["cuda-fp16"] == labels["cuda-bf16"] == labels["cuda-int4"] == labels["cpu-fp32"]
