"""StaticSession on the CPU: a fixed window, padded chunks, and what happens where the window ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray
from static_bundles import small

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.checkpoint import Checkpoint
from helium_onnx.contract import Window
from helium_onnx.errors import ContextOverflowError, GenerationError, ProviderError, UsageError
from helium_onnx.modeling import HeliumForCausalLM
from helium_onnx.recipe import Method
from helium_onnx.runtimes.opening import open_session
from helium_onnx.runtimes.static_session import StaticSession, window_of

WINDOW = Window(64, 16)
IDS = np.random.default_rng(0).integers(4, 320, (1, 64))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("static") / "checkpoint", std=0.1)


@pytest.fixture(scope="module", params=["qnn-fp16", "qnn-int4", "coreml-fp16"])
def bundle(request: pytest.FixtureRequest, checkpoint: Path) -> Bundle:
    method: Method = "k-quant" if request.param == "qnn-int4" else "none"
    recipe = small(request.param, WINDOW.context, WINDOW.prefill_chunk, method=method)
    return helium_onnx.export(checkpoint, checkpoint.parent / request.param, recipe=recipe)


@pytest.fixture
def session(bundle: Bundle) -> Iterator[StaticSession]:
    with contextlib.closing(StaticSession(bundle, provider="cpu", threads=1)) as opened:
        yield opened


def whole(bundle: Bundle, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits of all positions from model.onnx, which shares the weights and no code of the session."""
    import onnxruntime as ort

    model = ort.InferenceSession(bundle.graph_path("model"), providers=["CPUExecutionProvider"])
    past = {
        spec.name: np.zeros((1, int(spec.dims[1]), 0, int(spec.dims[3])), np.float16)
        for spec in bundle.manifest.graphs["model"].inputs
        if spec.name.startswith("past")
    }
    feed: dict[str, NDArray[Any]] = {"input_ids": ids, "attention_mask": np.ones_like(ids), **past}
    logits: NDArray[np.float32] = model.run(["logits"], feed)[0].astype(np.float32)
    return logits


def assert_near(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    # verification.TOLERANCE["float16"]: the same sums in another order, rounded to float16 at each operator.
    assert np.abs(found - expected).max() <= 1e-2 * np.abs(expected).max()


def test_the_window_is_the_graphs(bundle: Bundle, session: StaticSession, sample_bundle_fp32: Path) -> None:
    assert window_of(bundle) == session.window == WINDOW
    assert (session.context_length, session.exact_split, session.vocab_size) == (64, 16, 320)
    assert window_of(Bundle.open(sample_bundle_fp32)) is None


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40, 63])
def test_prefill_and_decode_are_the_models(length: int, bundle: Bundle, session: StaticSession) -> None:
    expected = whole(bundle, IDS)
    past = session.new_past(1)
    assert_near(session.run("prefill", IDS[:, :length], past)[0, -1], expected[0, length - 1])
    assert past.lengths.tolist() == [length]
    for i in range(length, min(length + 3, 64)):
        assert_near(session.run("decode", IDS[:, i : i + 1], past)[0, -1], expected[0, i])


def test_logits_are_pytorchs(checkpoint: Path, bundle: Bundle, session: StaticSession) -> None:
    if bundle.manifest.recipe["quantization"]["method"] != "none":
        pytest.skip("rounded weights give other logits; the test above holds them against model.onnx")
    model = HeliumForCausalLM.from_checkpoint(Checkpoint.open(checkpoint))
    with torch.inference_mode():
        expected = model(torch.from_numpy(IDS), torch.ones_like(torch.from_numpy(IDS)), model.empty_past())[0].numpy()
    past = session.new_past(1)
    assert_near(session.run("prefill", IDS[:, :40], past)[0, -1], expected[0, 39])
    assert_near(session.run("decode", IDS[:, 40:44], past)[0], expected[0, 40:44])


def test_slots_of_earlier_texts_are_not_seen(session: StaticSession) -> None:
    """Buffers are reused, and the window behind the text still holds another one's keys and values."""
    fresh = session.run("prefill", IDS[:, :20], session.new_past(1)).copy()
    session.run("prefill", IDS[:, ::-1].copy(), session.new_past(1))
    assert np.array_equal(session.run("prefill", IDS[:, :20], session.new_past(1)), fresh)


def test_a_length_that_is_set_back(session: StaticSession) -> None:
    past = session.new_past(1)
    expected = session.run("prefill", IDS[:, :18], past).copy()
    session.run("decode", IDS[:, 40:44], past)
    past.lengths[0] = 16
    assert np.array_equal(session.run("prefill", IDS[:, 16:18], past), expected)


def test_exact_split(session: StaticSession) -> None:
    """A restored prefix of whole chunks leads to the same bits."""
    once = session.new_past(1)
    expected = session.run("prefill", IDS[:, :50], once).copy()
    kept = once.read_slots(0, 32)
    split = session.new_past(1)
    split.write_slots(kept)
    assert np.array_equal(session.run("prefill", IDS[:, 32:50], split), expected)


def test_rows_of_different_lengths(session: StaticSession) -> None:
    alone = []
    for length in (20, 7):
        past = session.new_past(1)
        session.run("prefill", IDS[:, :length], past)
        alone.append(session.run("decode", IDS[:, length : length + 1], past).copy())
    past = session.new_past(2)
    for row, length in enumerate((20, 7)):
        session.run("prefill", IDS[:, :length], past.row(row))
    together = session.run("decode", np.array([[IDS[0, 20]], [IDS[0, 7]]]), past)
    assert past.lengths.tolist() == [21, 8]
    assert np.array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_the_end_of_the_context(phase: Any, session: StaticSession) -> None:
    """The last slot is used; one token more is refused, and nothing of it is run."""
    past = session.new_past(1)
    session.run("prefill", IDS[:, :63], past)
    session.run(phase, IDS[:, 63:], past)
    with pytest.raises(ContextOverflowError, match=r"65 tokens .*\n.*64 at most\n.*--context") as caught:
        session.run(phase, IDS[:, :1], past)
    assert isinstance(caught.value, GenerationError)
    assert past.lengths.tolist() == [64]


def test_generation_ends_in_time(bundle: Bundle) -> None:
    """A text may fill the context to its last slot; one that could go beyond is refused before it begins."""
    with contextlib.closing(helium_onnx.load(bundle.path, provider="cpu", context_length=24)) as model:
        assert model.generate("Once upon", max_new_tokens=4, temperature=0).text
        prompt = len(model.tokenizer.encode("Once upon"))
        (filled,) = model.generate("Once upon", max_new_tokens=24 - prompt, temperature=0, ignore_eos=True)
        assert len(filled.token_ids) == 24 - prompt
        assert filled.finish_reason == "length"
        with pytest.raises(ContextOverflowError):
            model.generate("Once upon", max_new_tokens=25 - prompt, temperature=0)
        with pytest.raises(ContextOverflowError, match="24"):
            model.generate("Once upon a time", max_new_tokens=60, temperature=0)


@pytest.mark.parametrize("asked", [1, 65])
def test_a_context_beyond_the_window(asked: int, bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="2 to 64, the window") as caught:
        open_session(bundle, provider="cpu", context_length=asked)
    assert caught.value.remedy == ("export with a longer context: --context" if asked == 65 else None)


def test_which_session(bundle: Bundle) -> None:
    with contextlib.closing(open_session(bundle, provider="cpu")) as session:
        assert isinstance(session, StaticSession)
    with pytest.raises(ProviderError, match="native kernels cannot run this"):
        open_session(bundle, provider="cpu", choice="native")
    made_for = bundle.manifest.recipe["execution_provider"]
    with pytest.raises(ProviderError, match=rf"cannot run on the execution provider cuda\n.*which is for {made_for}"):
        open_session(bundle, provider="cuda")


def test_closed(bundle: Bundle) -> None:
    session = StaticSession(bundle, provider="cpu")
    past = session.new_past(1)
    session.close()
    for call in (lambda: session.run("decode", IDS[:, :1], past), lambda: session.new_past(1), session.wait):
        with pytest.raises(GenerationError, match="has been closed"):
            call()
