"""Logits on the GPU beside PyTorch in float32: trained and wide models, every recipe, our kernels and ONNX Runtime's.

A bar is what PyTorch itself loses on the same GPU when the same stored weights run in the recipe's type: a graph that
is right is about as far from float32 as that; one with a wrong RoPE, mask or scale is thousands of times as far, which
the flipped model below shows.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import device_models
import numpy as np
import pytest
import torch
from device_models import WIDE, figures, stepwise
from numpy.typing import NDArray
from tiny import edit_json

import helium_onnx
from helium_onnx.bundle import Bundle

Exported = Callable[[str, str], Path]
Checkpoints = Callable[[str], Path]

#: Of PyTorch's own loss, and what is allowed beside it where that is next to nothing.
FACTOR, FLOOR = 3.0, 2e-6
CASES = [
    *(("docs", recipe) for recipe in ("cuda-fp16", "cuda-bf16", "cuda-int4")),
    *(("wide", recipe) for recipe in WIDE),
    *((model, recipe) for model in ("grouped", "llama") for recipe in ("fp16", "bf16", "int4-32")),
]


@pytest.mark.parametrize("kernels", ["native", "onnxruntime"])
@pytest.mark.parametrize(("model", "recipe"), CASES)
def test_logits_are_as_near_as_pytorch_in_the_same_type(
    model: str, recipe: str, kernels: str, exported: Exported, checkpoint_of: Checkpoints
) -> None:
    bundle = Bundle.open(exported(model, recipe))
    compute = str(bundle.manifest.recipe["precision"]["compute"])
    texts = device_models.windows(bundle, model)
    stored = device_models.of_bundle(bundle.path)
    wanted = [stored.logits(ids) for ids in texts]
    half = device_models.of_bundle(bundle.path, getattr(torch, compute))
    bar = figures(texts, wanted, half.logits)
    checkpoint = [device_models.of_checkpoint(checkpoint_of(model)).logits(ids) for ids in texts]
    with helium_onnx.load(bundle.path, provider="cuda", kernels=kernels, context_length=256, prefix_cache=0) as loaded:
        logits = {tuple(ids): stepwise(loaded.session, ids) for ids in texts}

    def ours(ids: object) -> NDArray[np.float32]:
        return logits[tuple(ids)]  # type: ignore[arg-type]

    found, lost = figures(texts, wanted, ours), figures(texts, checkpoint, ours)
    print(
        f"\n{model} {recipe} {kernels}: KL {found.kl.value:.2e} (PyTorch in {compute} {bar.kl.value:.2e}), top-1 "
        f"{found.same_top1.value:.4f} ({bar.same_top1.value:.4f}), max |d| {found.max_abs:.3g} ({bar.max_abs:.3g}); "
        f"beside the checkpoint: KL {lost.kl.value:.2e}, top-1 {lost.same_top1.value:.4f}, ln ratio "
        f"{lost.ln_ratio.value:.5f}"
    )
    assert found.not_finite == 0
    assert found.kl.value <= FACTOR * bar.kl.value + FLOOR
    assert found.max_abs <= FACTOR * bar.max_abs + 1e-3
    assert found.same_top1.value >= bar.same_top1.value - 0.02
    if model == "docs":
        assert lost.kl.value < (0.06 if recipe == "cuda-int4" else 0.002)
        assert lost.same_top1.value > (0.85 if recipe == "cuda-int4" else 0.97)


#: What an int8 cache may cost beside that: 1.28e-4 of mean KL divergence on a CPU (export/README.md).
CODES = 5e-4


@pytest.mark.parametrize("kernels", ["native", "onnxruntime"])
@pytest.mark.parametrize("recipe", ["fp16-kv8", "bf16-kv8"])
def test_an_int8_cache_costs_little(recipe: str, kernels: str, exported: Exported) -> None:
    """ONNX Runtime prefills, and either decodes, over the same codes."""
    bundle = Bundle.open(exported("docs", recipe))
    compute = str(bundle.manifest.recipe["precision"]["compute"])
    texts = device_models.windows(bundle, "docs")
    wanted = [device_models.of_bundle(bundle.path).logits(ids) for ids in texts]
    bar = figures(texts, wanted, device_models.of_bundle(bundle.path, getattr(torch, compute)).logits)
    with helium_onnx.load(bundle.path, provider="cuda", kernels=kernels, context_length=256, prefix_cache=0) as loaded:
        past = loaded.session.new_past(1)
        assert {tensor.dtype for tensor in past.cache.tensors} == {"int8"}  # type: ignore[attr-defined]
        logits = {tuple(ids): stepwise(loaded.session, ids) for ids in texts}
    found = figures(texts, wanted, lambda ids: logits[tuple(ids)])
    print(
        f"\n{recipe} {kernels}: KL {found.kl.value:.2e} (PyTorch in {compute}, no int8: {bar.kl.value:.2e}), top-1 "
        f"{found.same_top1.value:.4f} ({bar.same_top1.value:.4f}), max |d| {found.max_abs:.3g} ({bar.max_abs:.3g})"
    )
    assert found.not_finite == 0
    assert FLOOR < found.kl.value <= CODES + FACTOR * bar.kl.value
    assert found.same_top1.value >= bar.same_top1.value - 0.03


@pytest.mark.parametrize("model", ["docs", "wide", "grouped", "llama"])
def test_a_flipped_rope_would_fail_by_a_hundred_times(
    model: str, exported: Exported, checkpoint_of: Checkpoints, tmp_path: Path
) -> None:
    """The mutation that proves the bars above: the same weights with the other pairing of RoPE."""
    right = checkpoint_of(model)
    shutil.copytree(right, tmp_path / "flipped")
    flipped = "helium" if model == "llama" else "llama"
    edit_json(tmp_path / "flipped" / "config.json", model_type=flipped)
    bundle = Bundle.open(exported(model, "bf16" if model != "docs" else "cuda-bf16"))
    texts = device_models.windows(bundle, model, 3)
    wanted = [device_models.of_checkpoint(right).logits(ids) for ids in texts]
    bar = figures(texts, wanted, device_models.of_bundle(bundle.path, torch.bfloat16).logits)
    wrong = figures(texts, wanted, device_models.of_checkpoint(tmp_path / "flipped").logits)
    assert wrong.kl.value > 100 * (FACTOR * bar.kl.value + FLOOR)


@pytest.mark.parametrize("recipe", ["cuda-fp16", "cuda-bf16", "cuda-int4"])
def test_validate_on_the_device(recipe: str, exported: Exported, checkpoint_of: Checkpoints) -> None:
    """The deep form over 256 positions a call, and the shallow one beside transformers."""
    path, checkpoint = exported("docs", recipe), checkpoint_of("docs")
    report = helium_onnx.validate(path, against=checkpoint, text=device_models.VALID, limit=8, max_new_tokens=16)
    print(f"\n{recipe}: KL {report.figures.kl.value:.2e}, top-1 {report.figures.same_top1.value:.4f}")
    assert report.figures.not_finite == 0
    assert report.figures.kl.value < (0.06 if recipe == "cuda-int4" else 0.002)
    assert "CUDA" in report.conditions.machine or "NVIDIA" in report.conditions.machine
    shallow = helium_onnx.validate(path, against=checkpoint, prompts=["To insert a table in a text document,"])
    assert shallow.passed
    assert shallow.rows[0].prefill.relative < 0.3


def test_what_overflows_float16_is_refused_by_words_and_runs_in_bfloat16(
    checkpoint_of: Checkpoints, tmp_path: Path
) -> None:
    """The check of `helium-onnx overflow`, held against what the GPU does."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "changed"
    shutil.copytree(checkpoint_of("docs"), folder)
    tensors = load_file(folder / "model.safetensors")
    factor = 2.0**15
    tensors["model.layers.2.self_attn.v_proj.weight"] *= factor
    tensors["model.layers.2.self_attn.o_proj.weight"] /= factor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    report = helium_onnx.overflow(folder, tokens=512)
    assert report.verdict == "overflows"
    assert (report.worst.layer, report.worst.place) in ((2, "v_proj"), (2, "attention"))
    prompt = "To insert a table in a text document,"
    half = helium_onnx.export(folder, tmp_path / "half", recipe="cuda-fp16").path
    wide = helium_onnx.export(folder, tmp_path / "wide", recipe="cuda-bf16").path
    with helium_onnx.load(half, provider="cuda") as model, pytest.raises(helium_onnx.HeliumOnnxError):
        model.generate(prompt, max_new_tokens=8)
    with helium_onnx.load(wide, provider="cuda") as model:
        assert len(model.generate(prompt, max_new_tokens=8)[0].token_ids) == 8
