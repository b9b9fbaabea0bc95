"""Scales of an int8 cache: what they bound, which channels share one, and what cannot be calibrated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from helium_onnx.checkpoint import Checkpoint
from helium_onnx.errors import ExportError, WeightsError
from helium_onnx.exporter.key_value_scales import LARGEST_CODE, LEAST_SHARE, MARGIN, key_value_scales
from helium_onnx.modeling import HeliumForCausalLM
from helium_onnx.progress import ProgressEvent

KEY_PROJECTION = "model.layers.1.self_attn.k_proj.weight"
VALUE_PROJECTION = "model.layers.1.self_attn.v_proj.weight"


def windows(*lengths: int) -> list[NDArray[np.int64]]:
    return [np.random.default_rng(length).integers(4, 320, length) for length in lengths]


def changed(folder: Path, **tensors: torch.Tensor) -> Checkpoint:
    """A checkpoint with some of layer 1's tensors replaced."""
    tiny.write_checkpoint(folder, dtype="F32")
    file = folder / "model.safetensors"
    save_file({**load_file(file), **tensors}, file)
    return Checkpoint.open(folder)


@pytest.fixture(scope="module", params=["helium", "llama"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(tiny.write_checkpoint(tmp_path_factory.mktemp("scales"), model_type=request.param))


def test_no_key_or_value_of_the_text_is_clipped(checkpoint: Checkpoint) -> None:
    texts = windows(40, 7, 64)
    scales = key_value_scales(checkpoint, texts)
    assert len(scales) == 3
    model = HeliumForCausalLM.from_checkpoint(checkpoint)
    largest = [np.zeros((2, 16)) for _ in range(6)]
    for ids in texts:
        given = torch.from_numpy(ids)[None]
        _, *present = model(given, torch.ones_like(given), model.empty_past())
        largest = [np.maximum(a, b[0].abs().amax(1).numpy()) for a, b in zip(largest, present, strict=True)]
    for layer in range(3):
        key, value = scales[layer].key, scales[layer].value
        assert key.dtype == value.dtype == np.float32
        assert key.shape == value.shape == (2, 16)
        assert (largest[2 * layer] <= LARGEST_CODE * key / MARGIN * 1.0001).all()
        np.testing.assert_allclose(value, MARGIN * largest[2 * layer + 1] / LARGEST_CODE, rtol=1e-5)


def test_channels_that_are_rotated_into_each_other_share_a_scale(checkpoint: Checkpoint) -> None:
    for layer in key_value_scales(checkpoint, windows(40)):
        neighbours = layer.key.reshape(2, 8, 2)
        pairs = neighbours if checkpoint.config.rope_interleaved else layer.key.reshape(2, 2, 8).swapaxes(1, 2)
        np.testing.assert_array_equal(pairs[..., 0], pairs[..., 1])
        assert len(np.unique(pairs[..., 0])) == 16


def test_no_position_exceeds_a_pairs_scale(checkpoint: Checkpoint) -> None:
    """One token's key, at whatever position: attention to nothing else leaves it as it is but for the rotation."""
    scales = key_value_scales(checkpoint, [np.array([7])])
    model = HeliumForCausalLM.from_checkpoint(checkpoint)
    given = torch.full((1, 200), 7)
    key = model(given, torch.ones_like(given), model.empty_past())[1][0]
    assert (key.abs().amax(1).numpy() <= LARGEST_CODE * scales[0].key / MARGIN * 1.0001).all()


def test_scales_are_the_same_again(checkpoint: Checkpoint) -> None:
    one, other = (key_value_scales(checkpoint, windows(40, 9)) for _ in range(2))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.key, b.key)
        np.testing.assert_array_equal(a.value, b.value)


def test_a_silent_channel_has_a_scale(tmp_path: Path) -> None:
    """Codes are x / scale: the scale of a channel that is 0 throughout must not be."""
    weight = torch.ones(32, 64)
    weight[3] = 0
    scales = key_value_scales(changed(tmp_path, **{VALUE_PROJECTION: weight}), windows(20))[1]
    assert scales.value[0, 3] == pytest.approx(LEAST_SHARE * scales.value.max())


def test_a_layer_that_adds_nothing_has_scales(tmp_path: Path) -> None:
    nothing = {name: torch.zeros(32, 64) for name in (KEY_PROJECTION, VALUE_PROJECTION)}
    scales = key_value_scales(changed(tmp_path, **nothing), windows(20))[1]
    assert (scales.key == 1).all()
    assert (scales.value == 1).all()


@pytest.mark.parametrize(("name", "kind"), [(KEY_PROJECTION, "keys"), (VALUE_PROJECTION, "values")])
def test_an_overflow_names_the_layer(tmp_path: Path, name: str, kind: str) -> None:
    """Each weight is finite, and their sum is not. The kernel would make codes of it without a word."""
    checkpoint = changed(tmp_path, **{name: torch.full((32, 64), 3e38)})
    with pytest.raises(WeightsError, match=rf"layer 1 makes {kind}[\s\S]*32 of 32[\s\S]*key_value_cache"):
        key_value_scales(checkpoint, windows(20))


@pytest.mark.parametrize("texts", [[], [np.array([], np.int64)]])
def test_no_text(checkpoint: Checkpoint, texts: list[NDArray[np.int64]]) -> None:
    with pytest.raises(ExportError, match="calibration text"):
        key_value_scales(checkpoint, texts)


def test_progress_counts_bytes(checkpoint: Checkpoint) -> None:
    events: list[ProgressEvent] = []
    key_value_scales(checkpoint, windows(5, 6), events.append)
    assert [event.item for event in events] == [f"layer {layer}, 11 tokens" for layer in range(3)]
    assert [event.done for event in events] == sorted({event.done for event in events})
    assert events[-1].done == events[-1].total == 4 * checkpoint.config.num_parameters
