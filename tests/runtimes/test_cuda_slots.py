"""Keys and values that leave a GPU and come back, run without one (host_device.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
from cuda_sessions import TEXTS, Opening, prefilled, row_alone, step_by_step
from host_device import HostDevice

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.generation.model import LanguageModel
from helium_onnx.loading import load_tokenizer
from helium_onnx.runtimes.cuda_session import CudaSession


def test_slots_are_read_and_written(opening: Opening) -> None:
    session, _ = opening()
    past, ids = prefilled(session, TEXTS[:3])
    row = past.row(2)
    whole, part = row.read_slots(0, 41), row.read_slots(7, 30)
    assert len(whole) == 6 and {tensor.shape for tensor in whole} == {(2, 41, 16)}
    assert {tensor.dtype for tensor in whole} == {np.dtype(np.float16)}
    assert {tensor.shape for tensor in row.read_slots(0, 0)} == {(2, 0, 16)}
    for tensor, cut in zip(whole, part, strict=True):
        np.testing.assert_array_equal(tensor[:, 7:30], cut)
        assert np.isfinite(tensor).all() and tensor.any()
    expected = step_by_step(session, row_alone(session, whole), ids[2:], 5)
    again = row_alone(session, [tensor[:, :7] for tensor in whole])
    again.write_slots(part)
    again.write_slots([tensor[:, 30:] for tensor in whole])
    assert again.lengths.tolist() == [41]
    assert step_by_step(session, again, ids[2:], 5) == expected
    past, ids = prefilled(session, [TEXTS[2]])
    assert step_by_step(session, past, ids, 5) == expected


def test_slots_of_bfloat16_are_bytes(opening: Opening, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's CPU provider computes no bfloat16, so here nothing does: bytes go in and come out."""
    bundle = helium_onnx.export(tiny.write_checkpoint(tmp_path / "in"), tmp_path / "out", recipe="cuda-bf16")
    monkeypatch.setattr(HostDevice, "load", lambda *_, **__: None)
    monkeypatch.setattr(CudaSession, "_reserve", lambda _: None)
    session, device = opening(bundle=bundle)
    past = session.new_past(2)
    given = [np.random.default_rng(1).integers(0, 1 << 16, (2, 9, 16), np.uint16) for _ in range(6)]
    past.row(1).write_slots(given)
    for tensor, expected in zip(past.row(1).read_slots(0, 9), given, strict=True):
        assert tensor.dtype == np.uint16
        np.testing.assert_array_equal(tensor, expected)
    file = (bundle.path / "onnx" / "model.onnx_data").read_bytes()
    weights = next(memory for memory in device.held.values() if memory.nbytes > 100_000)
    norm = next(tensor for tensor in bundle.manifest.tensors if tensor.name == "model.norm.weight")
    assert norm.dtype == "bfloat16"
    assert file[norm.offset : norm.offset + norm.nbytes] in weights.tobytes()


def test_the_prefix_cache_changes_no_bit(
    cuda_bundle: Bundle, opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CudaSession, "exact_split", 16)
    session, _ = opening()
    tokenizer = load_tokenizer(cuda_bundle)
    text = "Once upon a time in the table of the time, an animal sat on it"
    prompts = [text, text + " and on", text[:50] + " to another text of another time"]
    caching, plain = LanguageModel(session, tokenizer, prefix_cache=10_000_000), LanguageModel(session, tokenizer)
    options: Any = {"max_new_tokens": 10, "logprobs": 3, "ignore_eos": True}
    for prompt in [*prompts, prompts]:
        found, expected = caching.generate(prompt, **options), plain.generate(prompt, **options)
        for row, wanted in zip(found, expected, strict=True):
            assert (row.token_ids, row.logprobs) == (wanted.token_ids, wanted.logprobs)
    cached = [row.cached_tokens for row in found]
    assert [count % 16 for count in cached] == [0, 0, 0] and min(cached) >= 16
