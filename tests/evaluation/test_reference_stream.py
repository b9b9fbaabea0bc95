"""The streamed reference against transformers, and against our own whole model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import reference
import torch
import transformers
from numpy.typing import NDArray

from helium_onnx.checkpoint import Checkpoint
from helium_onnx.errors import ResourceError
from helium_onnx.evaluation import reference as streamed
from helium_onnx.evaluation.reference import Head, HiddenStates, stream
from helium_onnx.modeling import HeliumForCausalLM
from helium_onnx.progress import ProgressEvent, silent

LENGTHS = (70, 3, 41, 1)


def texts() -> list[list[int]]:
    return [reference.random_ids(1, length, seed)[0].tolist() for seed, length in enumerate(LENGTHS)]


def logits_of(checkpoint: Checkpoint) -> list[NDArray[np.float32]]:
    hidden, head = stream(checkpoint, texts(), silent), Head(checkpoint)
    return [head(hidden[i]) for i in range(len(hidden))]


@pytest.mark.parametrize("model_type", ["helium", "llama"])
@pytest.mark.parametrize(("kv_heads", "tie"), [(4, False), (2, False), (1, True)])
def test_logits_equal_those_of_transformers(model_type: str, kv_heads: int, tie: bool, tmp_path: Path) -> None:
    folder = reference.save(reference.make_model(model_type, layers=3, kv_heads=kv_heads, tie=tie), tmp_path / "c")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    checkpoint = Checkpoint.open(folder)
    ours = HeliumForCausalLM.from_checkpoint(checkpoint)
    for ids, logits in zip(texts(), logits_of(checkpoint), strict=True):
        batch = torch.tensor([ids])
        with torch.inference_mode():
            wanted = theirs(batch).logits[0].numpy()
            whole = ours(batch, torch.ones_like(batch), ours.empty_past())[0][0].numpy()
        scale = np.abs(wanted).max()
        assert np.abs(logits - wanted).max() <= reference.TOLERANCE * scale
        assert np.abs(logits - whole).max() <= 1e-6 * scale


def test_a_wrong_rope_would_show(tmp_path: Path) -> None:
    folder = reference.save(reference.make_model("helium"), tmp_path / "c")
    right = logits_of(Checkpoint.open(folder))[0]
    reference.tiny.edit_json(folder / "config.json", model_type="llama")
    wrong = logits_of(Checkpoint.open(folder))[0]
    assert np.abs(right - wrong).max() > reference.MUTATION * np.abs(right).max()


def test_a_file_in_the_place_of_memory_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(reference.save(reference.make_model("helium"), tmp_path / "c"))
    in_memory = logits_of(checkpoint)
    monkeypatch.setattr(streamed, "LARGEST_IN_MEMORY", 0)
    monkeypatch.setattr(streamed.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    hidden = stream(checkpoint, texts(), silent)
    assert isinstance(hidden[0], np.memmap)
    assert list((tmp_path / "temporary").iterdir()) == []  # the file has no name that could be left behind
    head = Head(checkpoint)
    for index, wanted in enumerate(in_memory):
        np.testing.assert_array_equal(head(hidden[index]), wanted)


def test_no_room_for_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "LARGEST_IN_MEMORY", 0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(streamed.os, "posix_fallocate", full)
    with pytest.raises(ResourceError, match="no room for hidden states") as caught:
        HiddenStates([1000], 1000)
    assert "No space left" in str(caught.value)


def test_progress_ends_with_all(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(reference.save(reference.make_model("helium"), tmp_path / "c"))
    events: list[ProgressEvent] = []
    stream(checkpoint, texts(), events.append)
    assert events[0].total == 0
    done = [event.done for event in events[1:]]
    assert done == sorted(done)
    assert done[-1] == events[-1].total > 0


def test_one_layer_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer's weights are freed before the next one's are read."""
    import weakref

    checkpoint = Checkpoint.open(reference.save(reference.make_model("helium", layers=3), tmp_path / "c"))
    alive: weakref.WeakSet[object] = weakref.WeakSet()
    most = 0
    load = streamed.LayerRunner.load

    def counted(self: streamed.LayerRunner, *args: object) -> object:
        nonlocal most
        layer = load(self, *args)  # type: ignore[arg-type]
        alive.add(layer)
        most = max(most, len(alive))
        return layer

    monkeypatch.setattr(streamed.LayerRunner, "load", counted)
    stream(checkpoint, texts(), silent)
    assert most == 1
