"""What a model needs on a GPU: beside bundles that were really exported, and in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.config import PREVIEW_2B as PUBLISHED
from helium_onnx.config import HeliumConfig
from helium_onnx.errors import ResourceError
from helium_onnx.recipe import Recipe, list_recipes, load_recipe
from helium_onnx.runtimes import cuda_memory
from helium_onnx.runtimes.cuda_driver import DeviceInfo

PREVIEW_2B = HeliumConfig.from_dict(dict(PUBLISHED), source="kyutai/helium-1-preview-2b")
GPU = DeviceInfo(0, "NVIDIA X", (9, 0), 8 << 30, 8 << 30, 100)


def coded(name: str) -> Recipe:
    """The recipe over an int8 cache."""
    recipe = load_recipe(name)
    return dataclasses.replace(recipe, precision=dataclasses.replace(recipe.precision, key_value_cache="int8"))


@pytest.mark.parametrize("recipe", ["cuda-fp16", "cuda-bf16", "cuda-int4", coded("cuda-fp16"), coded("cuda-bf16")])
@pytest.mark.parametrize("tie", [False, True])
def test_an_estimate_is_what_a_bundle_needs(tmp_path: Path, recipe: str | Recipe, tie: bool) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / "in", tie=tie)
    bundle = helium_onnx.export(checkpoint, tmp_path / "out", recipe=recipe)
    config = HeliumConfig.from_file(checkpoint / "config.json")
    for rows, context in ((1, 256), (5, 100)):
        found = cuda_memory.estimate(config, load_recipe(recipe), rows=rows, context_length=context)
        exact = cuda_memory.of_bundle(bundle, rows=rows, context_length=context)
        # On the device tensors begin at multiples of 256 bytes.
        assert 0 <= exact.weights - found.weights < 256 * len(bundle.manifest.tensors)
        assert dataclasses.replace(found, weights=0) == dataclasses.replace(exact, weights=0)


def test_the_parts_of_a_2_b_model() -> None:
    found = cuda_memory.estimate(PREVIEW_2B, load_recipe("cuda-fp16"), rows=1, context_length=4096)
    parameters = PREVIEW_2B.num_parameters
    assert found.weights == 2 * parameters + 2 * 4096 * 64 * 2  # and the tables of cosines and sines
    # 24 layers, keys and values, 20 heads of 128, 2 bytes; logits in float32, two ids of 8 and 4 bytes.
    assert found.key_value_cache == 4096 * 24 * 2 * 20 * 128 * 2 + 4 * 48000 + 12
    # At least what an MLP of a chunk of 2048 tokens holds: gate, up and product.
    assert 3 * 2048 * 7040 * 2 < found.activations < 0.3e9
    assert found.total == found.weights + found.key_value_cache + found.activations + cuda_memory.WORKSPACE_BYTES
    four = cuda_memory.estimate(PREVIEW_2B, load_recipe("cuda-int4"), rows=1, context_length=4096)
    assert 0.5 < 8 * four.weights / parameters / 4.5 < 1.1
    assert four.key_value_cache == found.key_value_cache
    batch = cuda_memory.estimate(PREVIEW_2B, load_recipe("cuda-fp16"), rows=64, context_length=1024)
    assert batch.key_value_cache == pytest.approx(16 * found.key_value_cache, rel=0.02)
    assert batch.weights == found.weights


def test_codes_are_half_the_cache() -> None:
    half, codes = (
        cuda_memory.estimate(PREVIEW_2B, recipe, rows=1, context_length=4096)
        for recipe in (load_recipe("cuda-fp16"), coded("cuda-fp16"))
    )
    assert codes.key_value_cache == 4096 * 24 * 2 * 20 * 128 + 4 * 48000 + 12
    assert codes.weights - half.weights == 24 * 2 * 20 * 128 * 4  # a float32 scale a channel
    # ONNX Runtime's attention: a layer's numbers in float16, in prefill and in decode.
    assert codes.activations - half.activations == 2 * 4096 * 2 * 20 * 128 * 2


def test_every_shipped_cuda_recipe_has_an_estimate() -> None:
    recipes = [recipe for recipe in list_recipes() if recipe.execution_provider == "cuda"]
    assert len(recipes) >= 3
    for recipe in recipes:
        assert cuda_memory.estimate(PREVIEW_2B, recipe, rows=1, context_length=4096).weights > 1e9


@pytest.fixture
def large(cuda_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle that needs what the 2 B model does: its config and its weights, and no file for them."""
    monkeypatch.setattr(cuda_memory, "config_of", lambda _: PREVIEW_2B)
    weights = cuda_memory.estimate(PREVIEW_2B, load_recipe("cuda-fp16"), rows=1, context_length=4096).weights
    monkeypatch.setattr(cuda_memory, "weights_bytes", lambda _: weights)
    return cuda_bundle


def said(check: Callable[[], None]) -> str:
    with pytest.raises(ResourceError) as caught:
        check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("free", "remedy"),
    [
        (3.2e9, "3.2 GB of NVIDIA X are free: use cuda-int4 (2.9 GB)"),
        (5.6e9, "5.6 GB of NVIDIA X are free: use cuda-int4 (2.9 GB) or --context 2048 (5.6 GB)"),
        (5.3e9, "5.3 GB of NVIDIA X are free: use cuda-int4 (2.9 GB) or --context 1024 (5.3 GB)"),
        (2.5e9, "2.5 GB of NVIDIA X are free: close what uses it (nvidia-smi lists the processes)"),
    ],
)
def test_a_model_that_does_not_fit_is_told_what_would(large: Bundle, free: float, remedy: str) -> None:
    found = said(lambda: cuda_memory.check_load(large, GPU, int(free), context_length=4096))
    assert found == (
        "the model needs 6.1 GB on the device (4.3 weights, 1.0 keys and values for 4096 tokens, 0.1 activations, "
        f"0.6 workspace): {remedy}"
    )


def test_what_fits_says_nothing(large: Bundle) -> None:
    needed = cuda_memory.of_bundle(large, rows=1, context_length=4096).total
    cuda_memory.check_load(large, GPU, needed, context_length=4096)
    said(lambda: cuda_memory.check_load(large, GPU, needed - 1, context_length=4096))
    rows = cuda_memory.key_value_bytes(PREVIEW_2B, load_recipe("cuda-fp16"), rows=3, context_length=4096)
    cuda_memory.check_rows(large, GPU, rows, rows=3, context_length=4096)
    said(lambda: cuda_memory.check_rows(large, GPU, rows - 1, rows=3, context_length=4096))


def test_many_rows_of_codes_need_more_than_the_cache(large: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ONNX Runtime decodes them."""
    recipe = coded("cuda-fp16")
    monkeypatch.setattr(cuda_memory, "recipe_of", lambda _: recipe)
    for rows, unpacked in ((8, 0), (9, 9 * 4096 * 2 * 20 * 128 * 2)):
        needed = unpacked + cuda_memory.key_value_bytes(PREVIEW_2B, recipe, rows=rows, context_length=4096)
        cuda_memory.check_rows(large, GPU, needed, rows=rows, context_length=4096)
        with pytest.raises(ResourceError):
            cuda_memory.check_rows(large, GPU, needed - 1, rows=rows, context_length=4096)


@pytest.mark.parametrize(
    ("rows", "free", "needed", "remedy"),
    [
        (64, 20.2e9, "64.4", "20.2 GB of NVIDIA X are free: use 20 at once or --context 1024 (16.1 GB)"),
        (2, 0.1e9, "2.0", "0.1 GB of NVIDIA X are free: close what uses it (nvidia-smi lists the processes)"),
        (10**12, 1.1e9, "1006824972000.0", "1.1 GB of NVIDIA X are free: use 1 at once"),
    ],
)
def test_a_batch_that_does_not_fit_is_told_what_would(
    large: Bundle, rows: int, free: float, needed: str, remedy: str
) -> None:
    found = said(lambda: cuda_memory.check_rows(large, GPU, int(free), rows=rows, context_length=4096))
    for_what = "for their keys and values (4096 tokens each)"
    assert found == f"{rows} prompts at once need {needed} GB on the device {for_what}: {remedy}"
