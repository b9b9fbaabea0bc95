"""HeliumForCausalLM against ``transformers``, and proof that the comparison would notice a wrong RoPE.

A padded row is compared with the same row alone: whatever ``transformers`` makes of padding, that is what is right.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch

from helium_onnx.checkpoint import Checkpoint
from helium_onnx.config import HeliumConfig
from helium_onnx.modeling import HeliumForCausalLM, positions_from_mask, rope_tables

LENGTH, STEPS = 64, 16


@pytest.fixture(
    scope="module",
    params=[("helium", 4, False), ("helium", 2, False), ("helium", 2, True), ("llama", 4, False), ("llama", 1, False)],
    ids=lambda p: f"{p[0]}-{p[1]}kv{'-tied' if p[2] else ''}",
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, HeliumForCausalLM]:
    """A model of transformers, and ours read from the checkpoint that it saved."""
    model_type, kv_heads, tie = request.param
    theirs = reference.make_model(model_type, kv_heads=kv_heads, tie=tie)
    folder = reference.save(theirs, tmp_path_factory.mktemp("checkpoint"))
    return theirs, HeliumForCausalLM.from_checkpoint(Checkpoint.open(folder))


def forward(
    ours: HeliumForCausalLM, ids: np.ndarray, mask: np.ndarray | None = None, past: list[torch.Tensor] | None = None
) -> tuple[np.ndarray, list[torch.Tensor]]:
    past = ours.empty_past(len(ids)) if past is None else past
    mask = np.ones((len(ids), past[0].shape[2] + ids.shape[1]), np.int64) if mask is None else mask
    with torch.inference_mode():
        logits, *present = ours(torch.from_numpy(ids), torch.from_numpy(mask), past)
    return logits.numpy(), present


def test_prefill_and_decode(pair: tuple[Any, HeliumForCausalLM]) -> None:
    theirs, ours = pair
    ids = reference.random_ids(1, LENGTH + STEPS)
    expected = reference.logits_of(theirs, ids[0])
    logits, past = forward(ours, ids[:, :LENGTH])
    found = [logits[0]]
    for step in range(LENGTH, LENGTH + STEPS):
        logits, past = forward(ours, ids[:, step : step + 1], past=past)
        found.append(logits[0])
    assert past[0].shape[2] == LENGTH + STEPS
    assert reference.error(np.concatenate(found), expected) <= reference.TOLERANCE


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(pair: tuple[Any, HeliumForCausalLM], side: reference.Padding) -> None:
    theirs, ours = pair
    rows = [reference.random_ids(1, length, seed=length)[0] for length in (LENGTH, LENGTH - 7, 5)]
    ids, mask = reference.padded(rows, side)
    logits, _ = forward(ours, ids, mask)
    assert np.isfinite(logits).all()
    for i, row in enumerate(rows):
        assert reference.error(logits[i, mask[i] == 1], reference.logits_of(theirs, row)) <= reference.TOLERANCE


def test_decode_after_left_padding(pair: tuple[Any, HeliumForCausalLM]) -> None:
    theirs, ours = pair
    rows = [reference.random_ids(1, length + STEPS, seed=length)[0] for length in (LENGTH, 9)]
    ids, mask = reference.padded([row[:-STEPS] for row in rows], "left")
    _, past = forward(ours, ids, mask)
    expected = [reference.logits_of(theirs, row) for row in rows]
    for step in range(-STEPS, 0):
        mask = np.concatenate((mask, np.ones((2, 1), np.int64)), axis=1)
        logits, past = forward(ours, np.stack([row[step : step + 1 or None] for row in rows]), mask, past)
        for i in range(2):
            assert reference.error(logits[i, 0], expected[i][step]) <= reference.TOLERANCE


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(("model_type", "flipped"), [("helium", "llama"), ("llama", "helium")])
def test_the_other_rope_is_noticed(model_type: str, flipped: str, kv_heads: int, tmp_path: Path) -> None:
    theirs = reference.make_model(model_type, kv_heads=kv_heads)
    checkpoint = Checkpoint.open(reference.save(theirs, tmp_path))
    checkpoint.config = dataclasses.replace(checkpoint.config, model_type=flipped)  # type: ignore[arg-type]
    ids = reference.random_ids(1, LENGTH)
    logits, _ = forward(HeliumForCausalLM.from_checkpoint(checkpoint), ids)
    assert reference.error(logits[0], reference.logits_of(theirs, ids[0])) > reference.MUTATION


@pytest.mark.parametrize(("change", "value"), [("rope_theta", 20_000.0), ("rms_norm_eps", 1e-3)])
def test_other_constants_are_noticed(change: str, value: float, tmp_path: Path) -> None:
    theirs = reference.make_model("helium")
    checkpoint = Checkpoint.open(reference.save(theirs, tmp_path))
    checkpoint.config = dataclasses.replace(checkpoint.config, **{change: value})  # type: ignore[arg-type]
    ids = reference.random_ids(1, LENGTH)
    logits, _ = forward(HeliumForCausalLM.from_checkpoint(checkpoint), ids)
    assert reference.error(logits[0], reference.logits_of(theirs, ids[0])) > 10 * reference.TOLERANCE


def test_rope_tables_equal_those_of_transformers(pair: tuple[Any, HeliumForCausalLM]) -> None:
    theirs, ours = pair
    size = ours.config.head_dim
    cos, sin = theirs.model.rotary_emb(torch.zeros(1), torch.arange(ours.config.max_position_embeddings)[None])
    # transformers repeats each angle, in two halves whatever the pairing.
    for table, other in zip(rope_tables(ours.config), (cos[0], sin[0]), strict=True):
        assert torch.equal(table, other[:, : size // 2])
        assert torch.equal(table, other[:, size // 2 :])


def test_positions_count_real_tokens_only() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert positions_from_mask(mask, 5).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]
    assert positions_from_mask(mask, 2).tolist() == [[1, 2], [2, 2]]


def test_parameters_are_those_of_the_config(pair: tuple[Any, HeliumForCausalLM]) -> None:
    theirs, ours = pair
    config: HeliumConfig = ours.config
    assert sum(p.numel() for p in ours.parameters()) == config.num_parameters == theirs.num_parameters()
