"""Merged weights are peft's, however they are read, and so are the logits of a bundle that is exported with them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import tiny
import torch
from peft_adapters import RECIPES, adapted, load_base, write_adapter

import helium_onnx
from helium_onnx.adapters.merging import MergedCheckpoint, merged
from helium_onnx.bundle import sha256
from helium_onnx.checkpoint import Checkpoint
from helium_onnx.errors import AdapterError
from helium_onnx.evaluation.bundle_weights import BundleWeights

#: Of a weight's scale: the products are summed in another order.
WEIGHTS = 1e-6

OPTIONS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "all-linear": {"target_modules": "all-linear", "r": 7, "lora_alpha": 5},
    "rank-stabilized": {"use_rslora": True, "r": 8},
    "patterns": {
        "target_modules": ["q_proj", "down_proj"],
        "rank_pattern": {r"layers\.[01]\.self_attn.q_proj": 2, "model.layers.2.mlp.down_proj": 5},
        "alpha_pattern": {"down_proj": 3, "^model.layers.0.self_attn.q_proj": 1},
    },
    "some-layers": {"target_modules": ["v_proj"], "layers_to_transform": [0, 2], "layers_pattern": "layers"},
    "regular-expression": {"target_modules": r".*\.1\..*(gate|up)_proj", "exclude_modules": r".*up_proj"},
    "excluded": {"exclude_modules": ["model.layers.1.self_attn.q_proj"]},
    "fan-in-fan-out": {"fan_in_fan_out": True},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "ends": {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
    "whole-norm": {"modules_to_save": ["norm"]},
    "whole-head": {"modules_to_save": ["lm_head", "embed_tokens"]},
}


def assert_peft_s(checkpoint: Checkpoint, model: Any, base: Checkpoint) -> None:
    """Every weight is that of peft's merged model, and some are not the base's."""
    state, different = model.state_dict(), 0
    for name in base.tensors:
        expected = state[name].numpy()
        found = checkpoint.read(name)
        assert np.abs(found - expected).max() <= WEIGHTS * np.abs(expected).max(), name
        different += not np.array_equal(found, base.read(name))
    assert different
    assert isinstance(checkpoint, MergedCheckpoint)
    assert different == len(checkpoint.changed)


@pytest.mark.filterwarnings("ignore")  # peft's, of options that say nothing here
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_weights_are_those_of_peft(options: dict[str, Any], helium: Path, tmp_path: Path) -> None:
    adapter = write_adapter(helium, tmp_path / "adapter", **options)
    source = Checkpoint.open(helium)
    assert_peft_s(merged(source, [adapter]), adapted(helium, adapter, merge=True), source)


def test_weights_of_a_llama(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", target_modules="all-linear")
    source = Checkpoint.open(base)
    assert_peft_s(merged(source, [adapter]), adapted(base, adapter, merge=True), source)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adapters_in_half_precision(dtype: torch.dtype, helium: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    adapter = write_adapter(helium, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    source = Checkpoint.open(helium)
    assert_peft_s(merged(source, [adapter]), adapted(helium, adapter, merge=True), source)


def test_several_adapters_add_up(helium: Path, small: Path, large: Path) -> None:
    source = Checkpoint.open(helium)
    assert_peft_s(merged(source, [small, large]), adapted(helium, small, large, merge=True), source)


def test_all_ways_of_reading_agree(helium: Path, large: Path) -> None:
    checkpoint = merged(Checkpoint.open(helium), [large])
    for name in ("model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.k_proj.weight", "model.norm.weight"):
        whole = checkpoint.read(name)
        pieces = np.concatenate([rows.copy() for _, rows in checkpoint.iter_rows(name, max_bytes=1100)])
        np.testing.assert_allclose(pieces, whole, rtol=0, atol=1e-6)
        np.testing.assert_allclose(checkpoint.read_rows(name, 5, 17), whole[5:17], rtol=0, atol=1e-6)
        if whole.ndim == 2:
            order = np.array([9, 0, 9, 31])
            np.testing.assert_allclose(checkpoint.gather_rows(name, order), whole[order], rtol=0, atol=1e-6)


def test_the_last_tensor_s_update_is_not_taken_for_another_s(helium: Path, large: Path) -> None:
    """Two tensors read in turns, as packed query, key and value are."""
    checkpoint = merged(Checkpoint.open(helium), [large])
    names = [f"model.layers.0.self_attn.{x}_proj.weight" for x in "kv"]
    expected = [checkpoint.read(name) for name in names]
    readers = [checkpoint.iter_rows(name, max_bytes=2048) for name in names]
    for (first, k), (_, v) in zip(*readers, strict=True):
        np.testing.assert_allclose(k, expected[0][first : first + len(k)], rtol=0, atol=1e-6)
        np.testing.assert_allclose(v, expected[1][first : first + len(v)], rtol=0, atol=1e-6)


def test_a_large_weight_is_never_whole_in_memory(tmp_path: Path) -> None:
    base = tiny.write_checkpoint(
        tmp_path / "base", vocab_size=40_000, hidden_size=256, num_hidden_layers=1, head_dim=64
    )
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=["lm_head"])
    checkpoint = merged(Checkpoint.open(base), [adapter])
    tracemalloc.start()
    try:
        rows = sum(len(piece) for _, piece in checkpoint.iter_rows("lm_head.weight", max_bytes=4 << 20))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == 40_000  # 41 MB in float32
    assert peak < 16 << 20


def logits_of(bundle: helium_onnx.Bundle, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Of model.onnx, in plain ONNX Runtime."""
    import onnxruntime as ort

    session = ort.InferenceSession(bundle.graph_path("model"), providers=["CPUExecutionProvider"])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for spec in bundle.manifest.graphs["model"].inputs[2:]:
        feed[spec.name] = np.zeros((len(ids), spec.dims[1], 0, spec.dims[3]), spec.dtype)
    logits: np.ndarray[Any, Any] = session.run(["logits"], feed)[0]
    return logits


def test_logits_are_those_of_peft(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", target_modules="all-linear")
    ids = reference.random_ids(2, 64)
    with torch.inference_mode():
        expected = adapted(base, adapter, merge=True)(torch.from_numpy(ids)).logits.numpy()
        before = load_base(base)(torch.from_numpy(ids)).logits.numpy()
    bundle = helium_onnx.export(base, tmp_path / "out", recipe="cpu-fp32", adapter=adapter)
    scale = np.abs(expected).max()
    assert np.abs(logits_of(bundle, ids) - expected).max() <= reference.TOLERANCE * scale
    assert np.abs(before - expected).max() > reference.MUTATION * scale


def test_the_manifest_has_the_adapters_digests(helium: Path, small: Path, large: Path, tmp_path: Path) -> None:
    bundle = helium_onnx.export(helium, tmp_path / "out", recipe="cpu-fp32", adapter=[small, large])
    recorded = {record.path: record.sha256 for record in bundle.manifest.source}
    for number, folder in enumerate((small, large), start=1):
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            assert recorded[f"adapters/{number}/{name}"] == sha256(folder / name)
    assert recorded["model.safetensors"] == sha256(helium / "model.safetensors")
    assert not bundle.manifest.adapters


@pytest.mark.parametrize("recipe", [RECIPES["int8"], "cpu-int8"], ids=["round-to-nearest", "gptq"])
def test_quantizers_see_merged_weights(recipe: Any, helium: Path, large: Path, tmp_path: Path) -> None:
    """What 8 bits keep is the merged weights; GPTQ moves some by a few steps, to make good for others."""
    bundle = helium_onnx.export(helium, tmp_path / "out", recipe=recipe, adapter=large)
    source, model = Checkpoint.open(helium), adapted(helium, large, merge=True).state_dict()
    for name in ("model.layers.0.self_attn.o_proj.weight", "model.layers.2.mlp.down_proj.weight"):
        kept, expected = BundleWeights(bundle).read(name), model[name].numpy()
        assert np.linalg.norm(kept - expected) < 0.05 * np.linalg.norm(expected)
        assert np.linalg.norm(source.read(name) - expected) > 0.3 * np.linalg.norm(expected)


def test_two_adapters_that_hold_one_weight_whole_are_refused(helium: Path, tmp_path: Path) -> None:
    folders = [write_adapter(helium, tmp_path / name, modules_to_save=["norm"]) for name in ("one", "two")]
    with pytest.raises(AdapterError, match=r"two adapters hold .*norm\.weight whole"):
        merged(Checkpoint.open(helium), folders)
