"""The session over a GPU, run without one: a real CUDA bundle on ONNX Runtime's CPU provider (host_device.py)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tiny
from host_device import HostDevice
from numpy.typing import NDArray

import helium_onnx
from helium_onnx import kernels
from helium_onnx.bundle import Bundle
from helium_onnx.errors import GenerationError, ProviderError, ResourceError, UsageError
from helium_onnx.generation.model import LanguageModel
from helium_onnx.loading import load_tokenizer
from helium_onnx.progress import ProgressEvent
from helium_onnx.runtimes.cuda_device import NativeKernels
from helium_onnx.runtimes.cuda_session import STEPS_IN_FLIGHT, CudaSession
from helium_onnx.runtimes.device_cache import DevicePast
from helium_onnx.runtimes.onnxruntime_session import OnnxRuntimeSession

RANDOM = np.random.default_rng(0)
TEXTS = [RANDOM.integers(4, 320, (1, length)) for length in (20, 3, 41, 1, 7, 12)]
Ids = NDArray[np.int64]
Opening = Callable[..., tuple[CudaSession, HostDevice]]


@pytest.fixture
def opening(cuda_bundle: Bundle) -> Iterator[Opening]:
    """Opens sessions with a device of their own; they are closed at the end, and have then freed all memory."""
    opened: list[tuple[CudaSession, HostDevice]] = []

    def make(*, bundle: Bundle = cuda_bundle, lazy: bool = True, **options: Any) -> tuple[CudaSession, HostDevice]:
        native = options.pop("kernels", None)
        device = HostDevice(lazy=lazy, native=native)
        opened.append((CudaSession(bundle, device, **options), device))
        return opened[-1]

    yield make
    for session, device in opened:
        session.close()
        assert device.closed and not device.held


@pytest.fixture
def stand_in(native_kernels: object) -> NativeKernels:  # noqa: ARG001
    """Native kernels for up to two rows: a library that can be registered, and decode.onnx for the native graph."""
    return NativeKernels(kernels.LIBRARY, 2)


def prefilled(session: CudaSession, texts: list[Ids]) -> tuple[DevicePast, Ids]:
    """A past with a text in each row, and the greedy next ids [rows, 1]."""
    past = session.new_past(len(texts))
    assert isinstance(past, DevicePast)
    first = [session.run("prefill", text, past.row(row))[0].argmax(axis=-1) for row, text in enumerate(texts)]
    assert past.lengths.tolist() == [text.shape[1] for text in texts]
    return past, np.array(first)


def step_by_step(session: CudaSession, past: DevicePast, ids: Ids, steps: int) -> list[list[int]]:
    """Greedy ids, each chosen on the host."""
    found = []
    for _ in range(steps):
        ids = session.run("decode", ids, past)[:, 0].argmax(axis=-1)[:, None]
        found.append(ids[:, 0].tolist())
    return found


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


@pytest.mark.parametrize("lazy", [False, True])
def test_greedy_steps_in_flight_are_those_one_by_one(opening: Opening, lazy: bool) -> None:
    session, _ = opening(lazy=lazy)
    past, ids = prefilled(session, TEXTS[:1])
    expected = step_by_step(session, past, ids, 30)
    past, ids = prefilled(session, TEXTS[:1])
    found = []
    with contextlib.closing(session.greedy(ids, past)) as steps:
        for token_ids in steps:
            assert past.lengths.tolist() == [20 + len(found) + 1]
            found.append(token_ids.tolist())
            if len(found) == 30:
                break
    assert found == expected
    assert len({token for (token,) in found}) > 5  # not one token over and over, in which mistakes would not show
    assert past.lengths.tolist() == [50]
    # What ran further is as if it had not been.
    np.testing.assert_array_equal(
        session.run("decode", np.array([found[-1]]), past).copy(), _after(session, TEXTS[0], ids, found)
    )


def _after(session: CudaSession, text: Ids, first: Ids, found: list[list[int]]) -> NDArray[np.float32]:
    """The logits after the same tokens, in a past that no step ran ahead in."""
    past = session.new_past(1)
    session.run("prefill", text, past)
    for token in [first[0].tolist(), *found]:
        logits = session.run("decode", np.array([token]), past)
    return logits.copy()


def test_greedy_is_never_further_ahead_than_it_should(opening: Opening) -> None:
    session, device = opening()
    past, ids = prefilled(session, TEXTS[:1])
    decode = device.sessions["decode"]
    steps = session.greedy(ids, past)
    for count in range(1, 6):
        next(steps)
        # Captured by then, and the steps: those that were yielded, and those behind them.
        assert len(decode.graph_ids) - 3 == count + STEPS_IN_FLIGHT - 1
        assert device.driver.waiting(device.stream)  # the host did not wait for those
    steps.close()
    assert not device.driver.waiting(device.stream)
    assert decode.replays == 5 + STEPS_IN_FLIGHT - 1


@pytest.mark.parametrize("room", [0, 1, 2, 3, 7])
def test_greedy_ends_with_the_context(opening: Opening, room: int) -> None:
    session, device = opening(context_length=20 + room)
    past, ids = prefilled(session, TEXTS[:1])
    held = list(session.greedy(ids, past))  # arrays that no later step may write to
    found = [token_ids.tolist() for token_ids in held]
    assert len(found) == room and past.lengths.tolist() == [20 + room]
    assert not device.driver.waiting(device.stream)
    past, ids = prefilled(session, TEXTS[:1])
    assert step_by_step(session, past, ids, room) == found
    with pytest.raises(AssertionError, match="the past is full"):
        session.run("decode", ids, past)


@pytest.mark.parametrize("greedy", [False, True])
def test_rows_of_a_batch_are_as_alone(opening: Opening, greedy: bool) -> None:
    session, _ = opening()

    def run(texts: list[Ids]) -> list[list[int]]:
        past, ids = prefilled(session, texts)
        if not greedy:
            return step_by_step(session, past, ids, 12)
        with contextlib.closing(session.greedy(ids, past)) as steps:
            return [token_ids.tolist() for token_ids, _ in zip(steps, range(12), strict=False)]

    together = np.array(run(TEXTS))
    for row, text in enumerate(TEXTS):
        assert together[:, row : row + 1].tolist() == run([text])
    assert len({tuple(column) for column in together.T.tolist()}) == len(TEXTS)


def test_a_row_that_is_held_back_does_not_disturb_the_others(opening: Opening) -> None:
    """As the loop does with a row that has ended: here at the context's end, where it could not go on."""
    session, _ = opening(context_length=45)
    past, ids = prefilled(session, [TEXTS[0], TEXTS[2]])
    expected = [step[0] for step in step_by_step(session, past, ids, 4)]
    past, ids = prefilled(session, [TEXTS[0]])
    expected = [step[0] for step in step_by_step(session, past, ids, 25)]
    past, ids = prefilled(session, [TEXTS[0], TEXTS[2]])
    found = []
    for token_ids in session.greedy(ids, past):
        found.append(int(token_ids[0]))
        past.lengths[1] = 43
    assert found == expected
    assert past.lengths.tolist() == [45, 43]


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
        session.run("prefill", RANDOM.integers(4, 320, (1, longest)), past)
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


# Keys and values that leave the device


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


def row_alone(session: CudaSession, slots: list[NDArray[Any]]) -> DevicePast:
    past = session.new_past(1)
    assert isinstance(past, DevicePast)
    past.write_slots(slots)
    return past


def test_slots_of_bfloat16_are_bytes(opening: Opening, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's CPU provider computes no bfloat16, so here nothing does: bytes go in and come out."""
    bundle = helium_onnx.export(tiny.write_checkpoint(tmp_path / "in"), tmp_path / "out", recipe="cuda-bf16")
    monkeypatch.setattr(HostDevice, "load", lambda *_, **__: None)
    monkeypatch.setattr(CudaSession, "_reserve", lambda _: None)
    session, device = opening(bundle=bundle)
    past = session.new_past(2)
    given = [RANDOM.integers(0, 1 << 16, (2, 9, 16), np.uint16) for _ in range(6)]
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


def test_a_model_generates_greedily_and_may_be_interrupted(cuda_bundle: Bundle, opening: Opening) -> None:
    session, device = opening()
    model = LanguageModel(session, load_tokenizer(cuda_bundle))
    whole = model.generate(["Once", "upon a time"], max_new_tokens=30, ignore_eos=True, logprobs=0)  # on the host
    greedy = model.generate(["Once", "upon a time"], max_new_tokens=30, ignore_eos=True)
    assert [row.token_ids for row in greedy] == [row.token_ids for row in whole]
    stream = model.stream("upon a time", max_new_tokens=30, ignore_eos=True)
    next(stream)
    stream.close()
    assert stream.result[0].token_ids == whole[1].token_ids[: len(stream.result[0].token_ids)]
    wait, calls = device.driver.wait, 0

    def interrupted(event: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        wait(event)

    device.driver.wait = interrupted  # type: ignore[method-assign]
    result = model.generate("upon a time", max_new_tokens=30, ignore_eos=True)
    assert result[0].finish_reason == "interrupted"
    assert result[0].token_ids == whole[1].token_ids[:5]
    again = model.generate("upon a time", max_new_tokens=30, ignore_eos=True)
    assert again[0].token_ids == whole[1].token_ids


def test_a_prefill_is_cut_at_multiples_of_the_chunk(opening: Opening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaSession, "exact_split", 16)
    session, device = opening()
    past = session.new_past(1)
    whole = session.run("prefill", TEXTS[2], past).copy()
    assert len(device.sessions["prefill"].graph_ids) == 1 + 3  # the one at loading, then 16, 16, 9
    past = session.new_past(1)
    session.run("prefill", TEXTS[2][:, :16], past)
    np.testing.assert_array_equal(session.run("prefill", TEXTS[2][:, 16:], past), whole)
    assert set(device.sessions["prefill"].graph_ids) == {-1}


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
