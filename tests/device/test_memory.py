"""Memory on the GPU: one copy of the weights, an estimate that holds, and clear words where there is too little."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.errors import ResourceError
from helium_onnx.runtimes import cuda_memory

Exported = Callable[[str, str], Path]

GB = 1_000_000_000


def free() -> int:
    """Bytes that are free on the device."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info()[0])


@pytest.fixture(scope="module", autouse=True)
def _warm(exported: Exported) -> None:
    """Whatever is loaded once in a process (kernels, cuBLAS) is there before anything is measured."""
    for recipe in ("cuda-fp16", "cuda-int4"):
        with helium_onnx.load(exported("docs", recipe), provider="cuda", context_length=128) as model:
            model.generate("To insert a table", max_new_tokens=4)


@pytest.mark.parametrize("kernels", ["native", "onnxruntime"])
@pytest.mark.parametrize("recipe", ["fp16", "bf16"])
def test_prefill_and_decode_share_one_copy_of_the_weights(recipe: str, kernels: str, exported: Exported) -> None:
    bundle = Bundle.open(exported("wide", recipe))
    weights = cuda_memory.of_bundle(bundle, rows=1, context_length=256).weights
    room = 0.5 * GB  # of everything else
    assert weights > 1.5 * room  # so that no second copy hides there
    before = free()
    with helium_onnx.load(bundle.path, provider="cuda", kernels=kernels, context_length=256, prefix_cache=0) as model:
        session = model.session
        past = session.new_past(1)
        ids = np.full((1, 100), 5, np.int64)
        session.run("prefill", ids, past)
        session.run("decode", ids[:, :1], past)
        session.run("decode", ids[:, :3], past)  # several tokens: decode.onnx, beside the native graph
        taken = before - free()
        print(f"\n{recipe} {kernels}: weights {weights / GB:.2f} GB, taken {taken / GB:.2f} GB")
        assert weights <= taken + 0.01 * GB
        assert taken < weights + room
    assert before - free() < 0.1 * GB  # given back


@pytest.mark.parametrize("recipe", ["fp16", "bf16", "int4-64-zeros", "fp16-kv8"])
@pytest.mark.parametrize(("rows", "context"), [(1, 4096), (8, 1024)])
def test_the_estimate_is_not_exceeded_and_not_far_off(recipe: str, rows: int, context: int, exported: Exported) -> None:
    bundle = Bundle.open(exported("wide", recipe))
    planned = cuda_memory.of_bundle(bundle, rows=rows, context_length=context)
    before = free()
    with helium_onnx.load(bundle.path, provider="cuda", context_length=context, prefix_cache=0) as model:
        session = model.session
        past = session.new_past(rows)
        ids = np.random.default_rng(1).integers(4, 48000, (1, context - 8))
        for row in range(rows):
            session.run("prefill", ids, past.row(row))
        session.run("decode", np.full((rows, 1), 5, np.int64), past)
        taken = before - free()
    print(
        f"\n{recipe}, {rows} rows of {context}: planned {planned}, {planned.total / GB:.2f} GB; taken {taken / GB:.2f}"
    )
    assert taken <= planned.total
    assert planned.total - taken < 1.2 * GB


@contextmanager
def filled(leave: int) -> Iterator[None]:
    """A device on which so many bytes are free."""
    block = torch.empty(max(0, free() - leave), dtype=torch.uint8, device="cuda")
    try:
        yield
    finally:
        del block
        torch.cuda.empty_cache()


def test_too_little_memory_is_said_before_anything_is_loaded(exported: Exported) -> None:
    path = exported("wide", "fp16")
    with filled(GB), pytest.raises(ResourceError) as caught:
        helium_onnx.load(path, provider="cuda")
    print(f"\n{caught.value}")
    text = str(caught.value)
    assert "GB" in text and "free" in text
    assert "cuda-int4" in text or "--context" in text or "nvidia-smi" in text
    with helium_onnx.load(path, provider="cuda", context_length=256) as model:  # and nothing is broken
        assert model.session.run("prefill", np.full((1, 8), 5, np.int64), model.session.new_past(1)).shape[-1] == 48000


def test_a_smaller_context_fits_where_it_is_proposed(exported: Exported) -> None:
    path = exported("wide", "fp16")
    needed = [cuda_memory.of_bundle(Bundle.open(path), rows=1, context_length=context).total for context in (512, 4096)]
    room = sum(needed) // 2
    with filled(room):
        if free() >= needed[1]:
            pytest.fail("the device could not be filled as far as this test needs")
        with pytest.raises(ResourceError, match="--context"):
            helium_onnx.load(path, provider="cuda")
        with helium_onnx.load(path, provider="cuda", context_length=512) as model:
            past = model.session.new_past(1)
            model.session.run("prefill", np.full((1, 500), 5, np.int64), past)
            model.session.run("decode", np.full((1, 1), 5, np.int64), past)


def test_too_many_rows_are_an_error_and_the_session_goes_on(exported: Exported) -> None:
    with helium_onnx.load(exported("wide", "fp16"), provider="cuda", context_length=4096) as model:
        session = model.session
        ids = np.full((1, 16), 5, np.int64)
        before = session.run("prefill", ids, session.new_past(1)).copy()
        with pytest.raises(ResourceError):
            session.new_past(100_000)
        np.testing.assert_array_equal(session.run("prefill", ids, session.new_past(1)), before)
