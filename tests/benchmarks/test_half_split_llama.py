"""A Helium relabelled as a Llama computes the same."""

from __future__ import annotations

import sys
from pathlib import Path

import half_split_llama
import pytest
import torch
from tiny import write_checkpoint
from transformers import AutoModelForCausalLM, LlamaForCausalLM


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "helium", dtype="F32")


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert isinstance(model, LlamaForCausalLM) == (folder.name == "llama")
    ids = torch.arange(4, 100)[None]
    with torch.inference_mode():
        first = model(ids[:, :64], use_cache=True)
        second = model(ids[:, 64:], past_key_values=first.past_key_values)
    result: torch.Tensor = torch.cat([first.logits, second.logits], 1)
    return result


def test_a_relabelled_helium_has_the_same_logits(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama = tmp_path / "llama"
    monkeypatch.setattr(sys, "argv", ["half_split_llama.py", str(checkpoint), str(llama)])
    half_split_llama.main()
    expected = logits(checkpoint)
    torch.testing.assert_close(logits(llama), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_without_the_permutation_it_has_not(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = tmp_path / "llama"
    monkeypatch.setattr(sys, "argv", ["half_split_llama.py", str(checkpoint), str(llama)])
    monkeypatch.setattr(half_split_llama, "half_split", lambda weight, _head_dim: weight)
    half_split_llama.main()
    expected = logits(checkpoint)
    assert float((logits(llama) - expected).abs().max()) > 1e-3 * float(expected.abs().max())


def test_half_split_puts_even_rows_of_each_head_first() -> None:
    rows = torch.arange(8.0)[:, None]
    assert half_split_llama.half_split(rows, 4).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
