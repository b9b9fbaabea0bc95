"""The session over a GPU, run without one: a real CUDA bundle on ONNX Runtime's CPU provider (host_device.py)."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import numpy as np
import pytest
import tiny
from cuda_sessions import TEXTS, Opening, prefilled, row_alone, step_by_step
from host_device import HostDevice

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.errors import GenerationError, ProviderError, ResourceError, UsageError
from helium_onnx.progress import ProgressEvent
from helium_onnx.runtimes.cuda_device import NativeKernels
from helium_onnx.runtimes.cuda_session import STEPS_IN_FLIGHT, CudaSession
from helium_onnx.runtimes.device_cache import DevicePast
from helium_onnx.runtimes.onnxruntime_session import OnnxRuntimeSession

# What is computed


def test_logits_are_those_of_the_model(cuda_bundle: Bundle, opening: Opening, tmp_path: Any) -> None:
    """Beside the same checkpoint in float32: a wrong position or length would move them by more than rounding."""
    checkpoint = tiny.write_checkpoint(tmp_path / "in")  # that of cuda_bundle
    exact = helium_onnx.export(checkpoint, tmp_path / "out", recipe="cpu-fp32")
    session, _ = opening()
    with contextlib.closing(OnnxRuntimeSession(exact, cache=False)) as reference:
        past, expected = session.new_past(1), reference.new_past(1)
        rest = TEXTS[2]
        for width, phase in ((20, "prefill"), (5, "prefill"), (1, "decode"), (1, "decode"), (4, "decode")):
            ids, rest = rest[:, :width], rest[:, width:]
            ours = session.run(phase, ids, past)  # type: ignore[arg-type]
            theirs = reference.run(phase, ids, expected)  # type: ignore[arg-type]
            assert ours.dtype == np.float32 and ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs, atol=0.02 * np.abs(theirs).max())
    assert past.lengths.tolist() == expected.lengths.tolist() == [31]
    assert cuda_bundle.model_config == exact.model_config


def test_several_tokens_of_a_row_at_once_are_those_one_by_one(opening: Opening) -> None:
    session, device = opening()
    past = session.new_past(2)
    drafted = TEXTS[2][:, :6]
    for row in (0, 1):
        session.run("prefill", TEXTS[0], past.row(row))
    several = session.run("decode", drafted, past.row(1)).copy()
    assert several.shape == (1, 6, 320)
    single = [session.run("decode", drafted[:, [i]], past.row(0))[0, 0].copy() for i in range(6)]
    np.testing.assert_allclose(several[0], single, atol=0.02 * np.abs(several).max())
    assert past.lengths.tolist() == [26, 26]
    # Their captured graphs would be one for each width, and a row that is not the first has other addresses.
    ids = device.sessions["decode"].graph_ids
    assert ids[0] == -1 and all(number > 0 for number in ids[1:])
    np.testing.assert_array_equal(session.run("decode", drafted[:, :1], past.row(1)).shape, (1, 1, 320))
    assert ids[-1] == -1


# Captured graphs and buffers


def test_a_graph_for_each_number_of_rows_and_new_ones_when_buffers_grow(opening: Opening) -> None:
    session, device = opening()

    def run(rows: int) -> int:
        past, ids = prefilled(session, [TEXTS[0]] * rows)
        step_by_step(session, past, ids, 2)
        return device.sessions["decode"].graph_ids[-1]

    three, one = run(3), run(1)
    assert three != one
    held = device.held_bytes
    assert (run(3), run(1)) == (three, one)
    assert device.held_bytes == held
    assert device.sessions["decode"].released == []
    six = run(6)
    assert device.held_bytes > held
    assert sorted(device.sessions["decode"].released) == sorted([three, one])
    assert not {six, run(3), run(1)} & {three, one}


def test_each_thread_captures_for_itself(opening: Opening) -> None:
    session, device = opening()
    past, ids = prefilled(session, TEXTS[:1])
    expected = step_by_step(session, past, ids, 8)
    found: list[list[list[int]]] = []

    def run() -> None:
        past, ids = prefilled(session, TEXTS[:1])
        with contextlib.closing(session.greedy(ids, past)) as steps:
            found.append([token_ids.tolist() for token_ids, _ in zip(steps, range(8), strict=False)])

    for _ in range(2):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert found == [expected, expected]
    assert len(set(device.sessions["decode"].graph_ids)) == 1


def test_weights_are_on_the_device_once(cuda_bundle: Bundle, opening: Opening) -> None:
    _, device = opening(lazy=False)
    stored = sum(tensor.nbytes for tensor in cuda_bundle.manifest.tensors)
    assert device.loaded == ["prefill", "decode"]
    (weights,) = (memory.nbytes for memory in device.held.values() if memory.nbytes >= stored)
    assert weights < stored + 256 * len(cuda_bundle.manifest.tensors)


def test_the_largest_prefill_has_its_memory_when_the_session_is_loaded(
    opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    for chunk, context in ((100, 200), (2048, 150)):
        monkeypatch.setattr(CudaSession, "exact_split", chunk)
        session, device = opening(context_length=context)
        held, longest = device.held_bytes, min(chunk, context)
        assert device.sessions["prefill"].graph_ids == [-1]
        past = session.new_past(1)
        session.run("prefill", np.random.default_rng(0).integers(4, 320, (1, longest)), past)
        assert device.held_bytes == held


# Keys and values in int8


def test_logits_over_codes_are_nearly_those_over_halves(coded_bundle: Bundle, opening: Opening) -> None:
    """Prefill in two calls, several tokens, and steps. These weights, large so that a mistake shows, carry rounding on:
    seen was a tenth of the logits' root mean square; a flipped RoPE gives 1.2 times it.
    """
    exact, _ = opening()
    session, device = opening(bundle=coded_bundle)
    past, expected = session.new_past(1), exact.new_past(1)
    assert isinstance(past, DevicePast)
    rest = TEXTS[2]
    for width, phase in ((20, "prefill"), (5, "prefill"), (1, "decode"), (1, "decode"), (4, "decode")):
        ids, rest = rest[:, :width], rest[:, width:]
        ours = session.run(phase, ids, past).copy()  # type: ignore[arg-type]
        theirs = exact.run(phase, ids, expected)  # type: ignore[arg-type]
        assert np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(theirs**2)) < 0.25
    assert past.cache.nbytes - expected.cache.nbytes == -6 * 2 * 256 * 16  # type: ignore[attr-defined]
    assert not device.driver.waiting(device.stream)


def test_greedy_steps_over_codes_are_those_one_by_one(coded_bundle: Bundle, opening: Opening) -> None:
    session, _ = opening(bundle=coded_bundle)
    past, ids = prefilled(session, TEXTS[:3])
    expected = step_by_step(session, past, ids, 10)
    past, ids = prefilled(session, TEXTS[:3])
    with contextlib.closing(session.greedy(ids, past)) as steps:
        assert [next(steps).ravel().tolist() for _ in range(10)] == expected


def test_slots_of_codes_are_read_and_written(coded_bundle: Bundle, opening: Opening) -> None:
    session, _ = opening(bundle=coded_bundle)
    past, ids = prefilled(session, TEXTS[:3])
    whole = past.row(2).read_slots(0, 41)
    assert {(tensor.dtype.name, tensor.shape) for tensor in whole} == {("int8", (2, 41, 16))}
    expected = step_by_step(session, row_alone(session, whole), ids[2:], 5)
    past, ids = prefilled(session, [TEXTS[2]])
    assert step_by_step(session, past, ids, 5) == expected


def test_the_largest_prefill_over_codes_has_a_past(
    coded_bundle: Bundle, opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    for chunk, context, calls in ((100, 200, 2), (100, 120, 2), (2048, 150, 1)):
        monkeypatch.setattr(CudaSession, "exact_split", chunk)
        _, device = opening(bundle=coded_bundle, context_length=context)
        assert device.sessions["prefill"].graph_ids == [-1] * calls


# Our own kernels


def test_native_kernels_take_few_rows_and_decode_onnx_the_rest(opening: Opening, stand_in: NativeKernels) -> None:
    session, device = opening(kernels=stand_in)
    other, _ = opening()
    assert device.loaded == ["prefill", "native_decode"]
    for count in (1, 2):
        past, ids = prefilled(session, TEXTS[:count])
        theirs, their_ids = prefilled(other, TEXTS[:count])
        assert step_by_step(session, past, ids, 5) == step_by_step(other, theirs, their_ids, 5)
    assert device.loaded == ["prefill", "native_decode"]  # nothing has asked for the other yet
    past, ids = prefilled(session, TEXTS[:3])
    theirs, their_ids = prefilled(other, TEXTS[:3])
    assert step_by_step(session, past, ids, 5) == step_by_step(other, theirs, their_ids, 5)
    assert device.loaded == ["prefill", "native_decode", "decode"]
    assert device.sessions["decode"].replays > 0  # captured, as the native one


def test_native_kernels_are_a_choice(cuda_bundle: Bundle, opening: Opening, stand_in: NativeKernels) -> None:
    _, device = opening(kernels=stand_in, native=False)
    assert device.loaded == ["prefill", "decode"]
    events: list[ProgressEvent] = []
    _, device = opening(progress=events.append)
    assert device.loaded == ["prefill", "decode"]
    assert "ONNX Runtime's kernels instead of our own: there is no GPU" in [event.item for event in events]
    device = HostDevice()
    with pytest.raises(ProviderError, match=r"native kernels cannot run this\n.*there is no GPU"):
        CudaSession(cuda_bundle, device, native=True)
    assert device.closed and not device.held


def test_no_largest_logit_is_an_error(opening: Opening, stand_in: NativeKernels) -> None:
    session, device = opening(kernels=stand_in)
    past, ids = prefilled(session, TEXTS[:2])
    decode = device.sessions["native_decode"]
    first = session.greedy(ids, past)
    next(first)
    first.close()

    def spoil() -> None:
        def write() -> None:
            row = past.cache.input_ids.rows(1, 1)
            device.driver.to_device(row.address, np.array([[-1]]))

        device.driver.enqueue(device.stream, write)

    steps = session.greedy(ids, past)
    next(steps)
    decode.before_run = None
    run = decode.run_with_iobinding

    def run_and_spoil(binding: Any, options: Any) -> None:
        run(binding, options)
        spoil()

    decode.run_with_iobinding = run_and_spoil  # type: ignore[method-assign]
    for _ in range(STEPS_IN_FLIGHT - 1):
        next(steps)
    with pytest.raises(
        GenerationError, match=r"The model gave no usable logits\n.*row 1\n.*finite numbers\n.*validate"
    ):
        next(steps)


# What can go wrong


def test_a_closed_session(opening: Opening) -> None:
    session, _ = opening()
    past, ids = prefilled(session, TEXTS[:1])
    steps = session.greedy(ids, past)
    next(steps)
    session.close()
    session.close()
    steps.close()
    for call in (lambda: session.run("prefill", ids, past), lambda: session.new_past(1), session.wait):
        with pytest.raises(GenerationError, match="closed"):
            call()
    with pytest.raises(GenerationError, match="closed"):
        next(session.greedy(ids, past))


@pytest.mark.parametrize("asked", [1, 257])
def test_a_context_out_of_range(cuda_bundle: Bundle, asked: int) -> None:
    device = HostDevice()
    with pytest.raises(UsageError, match="2 to 256"):
        CudaSession(cuda_bundle, device, context_length=asked)
    assert device.closed


def test_too_little_memory_is_said_before_anything_is_loaded(cuda_bundle: Bundle) -> None:
    device = HostDevice(free_bytes=500_000_000)
    with pytest.raises(ResourceError, match=r"needs 0\.6 GB on the device .* 0\.5 GB of NVIDIA Fake are free"):
        CudaSession(cuda_bundle, device)
    assert device.closed and not device.loaded and not device.held


def test_a_batch_for_which_there_is_no_memory_leaves_the_session_as_it_was(opening: Opening) -> None:
    session, device = opening()
    past, ids = prefilled(session, TEXTS[:1])
    expected = step_by_step(session, past, ids, 3)
    held = device.held_bytes
    device.driver.free_bytes = 10 * past.cache.nbytes
    with pytest.raises(ResourceError, match=r"100 prompts at once need .* use 11 at once"):
        session.new_past(100)
    assert device.held_bytes == held
    past.lengths[:] = 20
    assert step_by_step(session, past, ids, 3) == expected
    # Others may have taken it since it was asked for.
    device.most_bytes = held + 1000
    with pytest.raises(ResourceError, match="too little free memory"):
        session.new_past(5)
    past, ids = prefilled(session, TEXTS[:1])
    assert step_by_step(session, past, ids, 3) == expected


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("CUDA failure 2: out of memory ; GPU=0", ResourceError, "ran out of memory"),
        ("Failed to allocate memory for requested buffer of size 1000", ResourceError, "ran out of memory"),
        ("CUDA error 700", ProviderError, r"the GPU failed in a run of the model\n.*700"),
    ],
)
def test_a_run_that_fails(opening: Opening, text: str, error: type[Exception], said: str) -> None:
    session, device = opening()
    past, ids = prefilled(session, TEXTS[:1])

    def fail() -> None:
        raise RuntimeError(text)

    device.sessions["decode"].before_run = fail
    with pytest.raises(error, match=said):
        session.run("decode", ids, past)
    with pytest.raises(error, match=said):
        next(session.greedy(ids, past))
    assert past.lengths.tolist() == [20]
