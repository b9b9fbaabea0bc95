"""The session over our own kernels: near the others' numbers, and the same bits however a text is split."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import pytest
import reference
import tiny
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.contract import NATIVE_GRAPH_FILES, NATIVE_GRAPHS
from helium_onnx.evaluation.bundle_weights import BundleWeights
from helium_onnx.recipe import MatrixSettings, Override, Precision, Quantization, Recipe
from helium_onnx.runtimes import native_session
from helium_onnx.runtimes.key_value_cache import InPlacePast
from helium_onnx.runtimes.native_session import NativeSession
from helium_onnx.runtimes.onnxruntime_session import OnnxRuntimeSession
from helium_onnx.runtimes.session import Phase, Session
from helium_onnx.verification import TOLERANCE

pytestmark = pytest.mark.usefixtures("native_kernels")

FOUR, EIGHT = MatrixSettings(4, 32, symmetric=False), MatrixSettings(8, 16)
INT4 = Quantization("round-to-nearest", 4, FOUR, MatrixSettings(8, 64, False), FOUR)
#: Fields of the tiny checkpoint, and its recipe. Both have matrices whose columns are no multiple of the block.
MODELS: dict[str, tuple[dict[str, Any], Recipe]] = {
    "helium": ({}, Recipe("h", "a test's", quantization=INT4)),
    "tied-three-projections": (
        {"tie": True, "num_key_value_heads": 4},
        Recipe("t", "", quantization=dataclasses.replace(INT4, overrides=(Override("*.v_proj", 8, 128),))),
    ),
    "llama-grouped": (
        {"model_type": "llama", "num_key_value_heads": 1},
        Recipe("l", "", precision=Precision(key_value_cache="float16"),
               quantization=Quantization("round-to-nearest", 4, EIGHT, EIGHT, EIGHT)),
    ),
}  # fmt: skip
LENGTH = 60

Ids = NDArray[np.int64]
Array = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Exported:
    checkpoint: Path
    bundle: Bundle
    recipe: Recipe
    session: NativeSession

    @functools.cached_property
    def whole(self) -> tuple[Array, list[Array]]:
        """Of ``text()`` in one call: logits of all positions, and what its tokens left in the slots."""
        past = self.session.new_past(1)
        logits = self.session.run("decode", text(), past)[0].copy()
        return logits, past.row(0).read_slots(0, LENGTH)


@pytest.fixture(scope="module", params=MODELS)
def exported(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    native_kernels: ctypes.CDLL,  # noqa: ARG001
) -> Iterator[Exported]:
    fields, recipe = MODELS[request.param]
    folder = tmp_path_factory.mktemp("native")
    bundle = helium_onnx.export(tiny.write_checkpoint(folder / "in", **fields), folder / "out", recipe=recipe)
    with contextlib.closing(NativeSession(bundle, context_length=2 * LENGTH, threads=2)) as session:
        yield Exported(folder / "in", bundle, recipe, session)


@pytest.fixture(scope="module")
def sample(sample_bundle: Path, native_kernels: ctypes.CDLL) -> Iterator[NativeSession]:  # noqa: ARG001
    with contextlib.closing(NativeSession(Bundle.open(sample_bundle))) as session:
        yield session


def text(length: int = LENGTH, seed: int = 1, vocabulary: int = 320) -> Ids:
    return np.random.default_rng(seed).integers(4, vocabulary, (1, length))


def logits_of(session: Session, ids: Ids, prompt: int) -> NDArray[np.float32]:
    """Of the last position of a prompt, and of each token after it: half of them alone, half as one draft."""
    past = session.new_past(1)
    found = [session.run("prefill", ids[:, :prompt], past)[0].copy()]
    middle = (prompt + ids.shape[1]) // 2
    found += [session.run("decode", ids[:, i : i + 1], past)[0].copy() for i in range(prompt, middle)]
    found.append(session.run("decode", ids[:, middle:], past)[0].copy())
    return np.concatenate(found)


def assert_same_bits(found: Array, expected: Array) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found.view(f"u{found.itemsize}"), expected.view(f"u{found.itemsize}"))


# Near the others


def test_near_onnxruntimes_kernels(exported: Exported) -> None:
    """Same weights, activations rounded in the same way: what is left are roundings that a last bit tips by a step of
    1/127, and keys and values in float16. Both sides round, so the bound is that of two roundings (verification.py).
    """
    with contextlib.closing(OnnxRuntimeSession(exported.bundle, context_length=LENGTH, cache=False)) as other:
        expected = logits_of(other, text(), 40)
    assert reference.error(logits_of(exported.session, text(), 40), expected) <= TOLERANCE["quantized"]


def test_near_onnxruntimes_kernels_on_trained_weights(sample: NativeSession) -> None:
    ids = text(300, vocabulary=6000)
    with contextlib.closing(OnnxRuntimeSession(sample.bundle, cache=False)) as other:
        expected = logits_of(other, ids, 280)
    found = logits_of(sample, ids, 280)
    assert reference.error(found, expected) <= TOLERANCE["quantized"] / 4
    assert (found.argmax(-1) == expected.argmax(-1)).mean() >= 0.8  # of random text: little tells two tokens apart


def halved(x: torch.Tensor) -> torch.Tensor:
    return x.half().float()


def with_the_same_roundings(exported: Exported) -> Any:
    """The bundle's weights in ``transformers``; each linear layer rounds its input as the kernels define it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(exported.checkpoint, dtype=torch.float32).eval()
    weights = BundleWeights(exported.bundle)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())  # a tied head may be stored otherwise
    for name, parameter in model.named_parameters():
        parameter.data = torch.from_numpy(weights.read(name))
    reference.round_inputs(model, exported.recipe)
    if exported.recipe.precision.key_value_cache == "float16":  # and so are the stored tables
        model.model.rotary_emb.register_forward_hook(lambda _m, _a, tables: tuple(map(halved, tables)))
    return model


def test_near_transformers_with_the_same_roundings(exported: Exported) -> None:
    """What is left is float32, 1e-6; but for the texts in which a last bit tips one rounding, by a step of 1/127."""
    ids = np.concatenate([text(6, seed) for seed in range(20)])
    cache = reference.RoundedCache(lambda _, keys, values: (halved(keys), halved(values)))
    with torch.inference_mode():
        expected = with_the_same_roundings(exported)(torch.from_numpy(ids), past_key_values=cache).logits.numpy()
    found = exported.session.run("decode", ids, exported.session.new_past(20))
    errors = [reference.error(one, other) for one, other in zip(found, expected, strict=True)]
    assert np.median(errors) <= 1e-5
    assert max(errors) <= TOLERANCE["quantized"]


def test_a_flipped_rotation_is_noticed(exported: Exported, tmp_path: Path) -> None:
    def flip(folder: Path) -> None:
        for graph in NATIVE_GRAPHS:
            assert bundles.flip_attribute(folder / NATIVE_GRAPH_FILES[graph], "interleaved")

    wrong = Bundle.open(bundles.forge(exported.bundle.path, tmp_path / "wrong", change=flip))
    with contextlib.closing(NativeSession(wrong, context_length=LENGTH)) as session:
        error = reference.error(logits_of(session, text(), 40), logits_of(exported.session, text(), 40))
    assert error > 2 * TOLERANCE["quantized"]


# The same bits


Call = tuple[Phase, int]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["prefill", "decode"]), st.integers(1, 45)), max_size=12))
def test_any_split_gives_the_same_bits(exported: Exported, calls: list[Call]) -> None:
    """``exact_split`` is 1: logits, keys and values of each token, in whatever calls it comes."""
    session, (logits, slots) = exported.session, exported.whole
    assert session.exact_split == 1
    past, start = session.new_past(1), 0
    for phase, count in [*calls, ("decode", LENGTH)]:
        stop = min(start + count, LENGTH)
        if start < stop:
            found = session.run(phase, text()[:, start:stop], past)[0]
            assert_same_bits(found, logits[stop - 1 : stop] if phase == "prefill" else logits[start:stop])
        start = stop
    for found, expected in zip(past.row(0).read_slots(0, LENGTH), slots, strict=True):
        assert_same_bits(found, expected)


def test_trained_weights_and_long_texts(sample: NativeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = text(700, vocabulary=6000)
    past = sample.new_past(1)
    whole = sample.run("prefill", ids, past).copy()  # in two chunks: 512 and the rest
    slots = past.row(0).read_slots(0, 700)
    for chunk in (700, 100, 37):
        monkeypatch.setattr(native_session, "CPU", dataclasses.replace(native_session.CPU, prefill_chunk=chunk))
        past = sample.new_past(1)
        assert_same_bits(sample.run("prefill", ids, past), whole)
        assert past.lengths.tolist() == [700]
        for found, expected in zip(past.row(0).read_slots(0, 700), slots, strict=True):
            assert_same_bits(found, expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(exported: Exported, threads: int) -> None:
    with contextlib.closing(NativeSession(exported.bundle, threads=threads)) as session:
        assert_same_bits(session.run("decode", text(), session.new_past(1))[0], exported.whole[0])


@pytest.mark.parametrize("width", [1, 3])
def test_a_ragged_batch_equals_each_row_alone(exported: Exported, width: int) -> None:
    session, prompts = exported.session, [text(length, seed=length) for length in (40, 1, 17)]
    steps = [text(3 * width, seed=100 + row) for row in range(3)]
    alone, left = [], []
    for prompt, new in zip(prompts, steps, strict=True):
        past = session.new_past(1)
        session.run("prefill", prompt, past)
        alone.append(session.run("decode", new, past)[0].copy())
        left.append(past.row(0).read_slots(0, int(past.lengths[0])))
    past = session.new_past(3)
    for row, prompt in enumerate(prompts):
        session.run("prefill", prompt, past.row(row))
    batch = np.concatenate(steps)
    for start in range(0, 3 * width, width):
        together = session.run("decode", batch[:, start : start + width], past)
        assert together.shape == (3, width, 320)
        for row in range(3):
            assert_same_bits(together[row], alone[row][start : start + width])
    for row in range(3):
        for found, expected in zip(past.row(row).read_slots(0, int(past.lengths[row])), left[row], strict=True):
            assert_same_bits(found, expected)


# The past


def test_slots_that_were_read_can_be_written(exported: Exported) -> None:
    """As of a prefix that is kept: in pieces, into a row of another batch."""
    session, (logits, slots) = exported.session, exported.whole
    past = session.new_past(3)
    row = past.row(2)
    for start, stop in ((0, 11), (11, 12), (12, 50)):
        row.write_slots([tensor[:, start:stop] for tensor in slots])
    assert past.lengths.tolist() == [0, 0, 50]
    assert_same_bits(session.run("decode", text()[:, 50:], row)[0], logits[50:])
    for found, expected in zip(past.row(2).read_slots(7, LENGTH), slots, strict=True):
        assert_same_bits(found, expected[:, 7:])


def test_a_length_that_is_set_back_forgets(exported: Exported) -> None:
    session, (logits, _) = exported.session, exported.whole
    past = session.new_past(1)
    session.run("prefill", text(), past)
    for seed in range(3):  # other tokens in the slots that will be written again
        past.lengths[:] = 20
        session.run("decode", text(30, seed=50 + seed), past)
    past.lengths[:] = 20
    assert_same_bits(session.run("decode", text()[:, 20:], past)[0], logits[20:])


def test_the_past_stays_in_place_and_other_rows_untouched(exported: Exported) -> None:
    session = exported.session
    past = session.new_past(3)
    assert isinstance(past, InPlacePast)
    assert {buffer.dtype.name for buffer in past.buffers} == {"float16"}
    addresses = [buffer.ctypes.data for buffer in past.buffers]
    for buffer in past.buffers:
        buffer[:] = np.nan  # which would show, were it read
    row = past.row(1)
    session.run("prefill", text(10), row)
    assert np.isfinite(session.run("decode", text(5), row)).all()
    assert past.lengths.tolist() == [0, 15, 0]
    assert [buffer.ctypes.data for buffer in past.buffers] == addresses
    for buffer in past.buffers:
        assert np.isnan(buffer[[0, 2]]).all() and np.isnan(buffer[1, :, 15:]).all()
        assert np.isfinite(buffer[1, :, :15]).all()
    smaller = session.new_past(2)
    assert isinstance(smaller, InPlacePast)
    assert [buffer.ctypes.data for buffer in smaller.buffers] == addresses
    assert smaller.lengths.tolist() == [0, 0]
