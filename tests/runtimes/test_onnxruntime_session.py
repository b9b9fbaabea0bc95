"""The session over ONNX Runtime: chunks, batches and steps give the same numbers, the past stays in place, and what
cannot be is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import bundles
import numpy as np
import onnxruntime as ort
import pytest
import tiny
from numpy.typing import NDArray

import helium_onnx
from helium_onnx.errors import BundleError, GenerationError, ProviderError, ResourceError, UsageError
from helium_onnx.generation.model import LanguageModel
from helium_onnx.manifest import Manifest
from helium_onnx.runtimes.key_value_cache import InPlacePast
from helium_onnx.runtimes.onnxruntime_session import OnnxRuntimeSession
from helium_onnx.runtimes.session import Past
from helium_onnx.tokenizer import Tokenizer

#: Of the logits' scale: float32 sums in another order.
TOLERANCE = 1e-5

#: Of quantized bundles too: by default these run on our own kernels.
load = functools.partial(helium_onnx.load, kernels="onnxruntime")

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]


@pytest.fixture(scope="module")
def in_place(sample_bundle_fp32: Path) -> Iterator[LanguageModel]:
    with load(sample_bundle_fp32, cache=False) as model:
        yield model


@pytest.fixture(scope="module")
def growing(export_sample: Callable[[str], Path]) -> Iterator[LanguageModel]:
    with load(export_sample("portable-fp32"), cache=False) as model:
        yield model


@pytest.fixture(params=["in_place", "growing"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    """The same weights over buffers that the graph writes in place, and over tensors that grow."""
    chosen: LanguageModel = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture(scope="module")
def texts() -> dict[str, list[str]]:
    """Texts by language; those of the file's test data, which the sample was not trained on."""
    found: dict[str, list[str]] = {}
    for line in (Path(__file__).parents[1] / "data" / "texts.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row["lang"], []).append(row["text"])
    return found


def session_of(model: LanguageModel) -> OnnxRuntimeSession:
    assert isinstance(model.session, OnnxRuntimeSession)
    return model.session


def some_ids(count: int, seed: int = 0) -> Ids:
    return np.random.default_rng(seed).integers(4, 6000, (1, count))


def assert_close(ours: Logits, theirs: Logits) -> None:
    assert ours.shape == theirs.shape
    assert float(np.abs(ours - theirs).max() / np.abs(theirs).max()) <= TOLERANCE


def greedy(session: OnnxRuntimeSession, past: Past, logits: Logits, count: int) -> list[int]:
    """``count`` tokens after a prefill that gave ``logits``."""
    chosen = [int(logits[0, -1].argmax())]
    while len(chosen) < count:
        chosen.append(int(session.run("decode", np.array([[chosen[-1]]]), past)[0, -1].argmax()))
    return chosen


# Chunks and steps


@pytest.mark.parametrize("chunk", [1, 7, 64, 99])
def test_a_prefill_in_chunks_equals_one_in_one_go(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    session, ids = session_of(model), some_ids(100)
    past = session.new_past(1)
    whole = session.run("prefill", ids, past).copy()
    tokens = greedy(session, past, whole, 8)

    monkeypatch.setattr(session, "provider", dataclasses.replace(session.provider, prefill_chunk=chunk))
    past = session.new_past(1)
    pieces = session.run("prefill", ids, past)
    assert past.lengths.tolist() == [100]
    assert_close(pieces, whole)
    assert greedy(session, past, pieces, 8) == tokens


def test_a_decode_of_four_tokens_equals_four_of_one(model: LanguageModel) -> None:
    session, prompt, draft = session_of(model), some_ids(20), some_ids(4, seed=1)
    past = session.new_past(1)
    session.run("prefill", prompt, past)
    single = np.concatenate([session.run("decode", draft[:, i : i + 1], past).copy() for i in range(4)], axis=1)
    past.lengths[:] = 20
    together = session.run("decode", draft, past)
    assert past.lengths.tolist() == [24]
    assert together.shape == (1, 4, 6000)
    assert_close(together, single)


def test_a_length_that_is_set_back_forgets(model: LanguageModel) -> None:
    session, next_id = session_of(model), some_ids(1, seed=2)
    past = session.new_past(1)
    session.run("prefill", some_ids(20), past)
    first = session.run("decode", next_id, past).copy()
    for seed in range(3):  # other tokens in the slots that will be written again
        session.run("decode", some_ids(1, seed=seed), past)
    past.lengths[:] = 20
    np.testing.assert_array_equal(session.run("decode", next_id, past), first)


def test_prefill_after_a_past_continues_it(model: LanguageModel) -> None:
    session, ids = session_of(model), some_ids(50)
    past = session.new_past(1)
    whole = session.run("prefill", ids, past).copy()
    past = session.new_past(1)
    session.run("prefill", ids[:, :30], past)
    assert_close(session.run("prefill", ids[:, 30:], past), whole)


# The past


def test_the_past_stays_in_place_and_other_rows_untouched(in_place: LanguageModel) -> None:
    session = session_of(in_place)
    past = session.new_past(3)
    assert isinstance(past, InPlacePast)
    addresses = [buffer.ctypes.data for buffer in past.buffers]
    for buffer in past.buffers:
        buffer[:] = 7.0
    row = past.row(1)
    session.run("prefill", some_ids(10), row)
    greedy(session, row, session.run("decode", some_ids(1), row), 5)
    assert past.lengths.tolist() == [0, 15, 0]
    assert [buffer.ctypes.data for buffer in past.buffers] == addresses
    for buffer in past.buffers:
        assert (buffer[[0, 2]] == 7.0).all()
        assert (buffer[1, :, 15:] == 7.0).all()  # nor the slots behind the tokens
        assert (buffer[1, :, :15] != 7.0).any(axis=2).all()  # each token's slot was written


def test_buffers_are_kept_from_request_to_request(in_place: LanguageModel) -> None:
    session = session_of(in_place)
    large = session.new_past(4)
    small = session.new_past(2)
    assert isinstance(large, InPlacePast) and isinstance(small, InPlacePast)
    assert [b.ctypes.data for b in small.buffers] == [b.ctypes.data for b in large.buffers]
    assert small.lengths.tolist() == [0, 0]


def test_a_tiny_text_does_not_take_the_memory_of_the_context(tmp_path: Path) -> None:
    """Four rows of 262,144 tokens are 1.6 GB of address space, of which 50 tokens may touch next to nothing."""
    checkpoint = tiny.write_checkpoint(tmp_path / "c", num_key_value_heads=4, max_position_embeddings=262_144)
    bundle = helium_onnx.export(checkpoint, tmp_path / "b", recipe="cpu-fp32")
    code = f"""
import os, helium_onnx
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
model = helium_onnx.load({str(bundle.path)!r}, cache=False, threads=1)
model.session.wait()
model.generate("the", max_new_tokens=2)
before = resident()
model.generate(["the table", "in", "on a", "of"], max_new_tokens=10, ignore_eos=True)
past = model.session.new_past(4)
print(sum(buffer.nbytes for buffer in past.buffers), resident() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    allocated, touched = map(int, done.stdout.split())
    assert allocated == 4 * 262_144 * 16 * 4 * 4 * 2 * 3
    assert touched < allocated / 50


def test_a_past_beyond_all_memory(sample_bundle_fp32: Path) -> None:
    with load(sample_bundle_fp32, cache=False) as model:
        with pytest.raises(ResourceError, match=r"1000000000 rows of 2048 tokens[\s\S]*GB needed[\s\S]*--context"):
            session_of(model).new_past(10**9)
        assert model.generate("Wählen Sie", max_new_tokens=2)[0].text  # and goes on


# Generation


def test_a_ragged_batch_gives_each_prompts_own_tokens(model: LanguageModel, texts: dict[str, list[str]]) -> None:
    """Several languages, 1 to 600 tokens; some rows end at the stop string, some at the limit."""
    encode = model.tokenizer.encode
    long = "\n".join(text for rows in texts.values() for text in rows)[:4000]
    assert len(encode(long)) > 600
    while len(encode(long)) > 600:
        long = long[:-10]
    prompts = ["", "a", *(rows[1][: 60 * i + 20] for i, rows in enumerate(texts.values())), long]
    lengths = [len(encode(prompt)) for prompt in prompts]
    assert min(lengths) == 1 and 580 <= max(lengths) <= 600 and len(set(lengths)) >= 6
    options = {"max_new_tokens": 24, "stop": ". ", "ignore_eos": False}
    together = list(model.generate(prompts, **options))  # type: ignore[arg-type]
    assert {row.finish_reason for row in together} >= {"stop", "length"}
    for prompt, row in zip(prompts, together, strict=True):
        alone = model.generate(prompt, **options)[0]  # type: ignore[arg-type]
        assert row.token_ids == alone.token_ids, prompt[:60]
        assert (row.text, row.finish_reason) == (alone.text, alone.finish_reason)


def test_a_row_that_ends_at_eos_leaves_the_others_alone(in_place: LanguageModel, sample_bundle_fp32: Path) -> None:
    """The end token is made one that the second row comes by early: greedily the sample seldom ends by itself."""
    prompts = ["Hilfe", "Aide", "Ayuda", "Help"]
    whole = in_place.generate(prompts, max_new_tokens=60)
    eos = whole[1].token_ids[8]
    tokenizer = Tokenizer.from_folder(sample_bundle_fp32, vocab_size=6000, bos_token_id=1, eos_token_ids=(eos,))
    rows = LanguageModel(in_place.session, tokenizer).generate(prompts, max_new_tokens=60)
    assert rows[1].finish_reason == "eos"
    assert any(row.finish_reason == "length" for row in rows)
    for before, after in zip(whole, rows, strict=True):
        end = before.token_ids.index(eos) + 1 if eos in before.token_ids else len(before.token_ids)
        assert after.token_ids == before.token_ids[:end]


def test_no_state_goes_from_one_request_to_the_next(sample_bundle: Path) -> None:
    with load(sample_bundle, cache=False) as model:
        first = model.generate("Pour insérer un tableau", max_new_tokens=20)
        model.generate(["Um eine", "To insert a table into a text document,", "Para"], max_new_tokens=30)
        stream = model.stream("The table", max_new_tokens=50)
        next(stream)
        stream.close()  # left in the middle
        again = model.generate("Pour insérer un tableau", max_new_tokens=20)
    assert again[0].token_ids == first[0].token_ids


def test_standard_operators_give_the_text_of_the_fused_ones(
    in_place: LanguageModel, growing: LanguageModel, texts: dict[str, list[str]]
) -> None:
    prompts = [rows[1][:120] for rows in texts.values()]
    fused, standard = (list(m.generate(prompts, max_new_tokens=40, ignore_eos=True)) for m in (in_place, growing))
    for prompt, one, other in zip(prompts, fused, standard, strict=True):
        assert one.token_ids == other.token_ids
        assert growing.generate(prompt, max_new_tokens=40, ignore_eos=True)[0].text == one.text


def test_the_context_can_be_filled_to_its_last_slot(sample_bundle: Path) -> None:
    with load(sample_bundle, cache=False, context_length=16) as model:
        prompt = "To insert"
        room = 16 - len(model.tokenizer.encode(prompt))
        rows = model.generate([prompt, "a"], max_new_tokens=room, ignore_eos=True)
        assert [len(row.token_ids) for row in rows] == [room, room]


# What is refused


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"context_length": 2049}, UsageError, r"2049\n.*2 to 2048"),
        ({"context_length": 1}, UsageError, "2 to 2048"),
        ({"context_length": 0}, UsageError, "2 to 2048"),
        ({"context_length": -5}, UsageError, "2 to 2048"),
        ({"threads": 0}, UsageError, "1 to 1024"),
        ({"threads": -1}, UsageError, "1 to 1024"),
        ({"threads": 1025}, UsageError, "1025"),
        ({"provider": "cpus"}, ProviderError, r"'cpus'\n.*one of auto, cpu"),
        ({"provider": ""}, ProviderError, "one of auto, cpu"),
    ],
)
def test_an_option_out_of_range(
    sample_bundle: Path, options: dict[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        load(sample_bundle, **options)  # type: ignore[arg-type]


def test_another_provider_than_asked_for_is_no_fallback(sample_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort.InferenceSession, "get_providers", lambda _: ["AzureExecutionProvider", "Other"])
    with pytest.raises(ProviderError, match=r"CPUExecutionProvider\n.*AzureExecutionProvider, Other"):
        load(sample_bundle, cache=False)


def test_a_manifest_without_one_of_the_graphs(sample_bundle: Path, tmp_path: Path) -> None:
    def drop(manifest: Manifest) -> Manifest:
        return dataclasses.replace(manifest, graphs={k: v for k, v in manifest.graphs.items() if k != "decode"})

    with pytest.raises(BundleError, match="no graph 'decode'"):
        load(bundles.forge(sample_bundle, tmp_path / "b", manifest=drop), cache=False)


def test_another_task_is_refused(sample_bundle: Path, tmp_path: Path) -> None:
    bundle = bundles.forge(
        sample_bundle, tmp_path / "b", manifest=lambda m: dataclasses.replace(m, task="text-classification")
    )
    with pytest.raises(BundleError, match="is not what its manifest says"):
        load(bundle)


def test_a_closed_model(sample_bundle: Path) -> None:
    with load(sample_bundle, cache=False) as model:
        model.close()  # and the block closes it once more
    with pytest.raises(GenerationError, match="closed"):
        model.generate("the", max_new_tokens=1)
