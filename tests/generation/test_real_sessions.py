"""Drafts and the prefix cache over real kernels: ONNX Runtime's and our own."""

from __future__ import annotations

import ctypes
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.errors import BundleError, SavedSessionError, TokenizerError
from helium_onnx.generation import speculation
from helium_onnx.generation.draft_length import DraftLength
from helium_onnx.generation.loop import Loop
from helium_onnx.generation.model import LanguageModel
from helium_onnx.generation.request import Request
from helium_onnx.generation.sampling import SamplingOptions
from helium_onnx.loading import load_tokenizer
from helium_onnx.runtimes.native_session import NativeSession
from helium_onnx.runtimes.onnxruntime_session import OnnxRuntimeSession

#: Two logits that differ by less are a tie: which one is larger depends on the order of float32 sums.
TIE = 1e-5


@pytest.fixture(scope="module")
def pages() -> list[str]:
    """Beginnings of help pages in six languages, which the sample was not trained on."""
    lines = (Path(__file__).parents[1] / "data" / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"][:600] for line in lines[::3]]


@pytest.fixture(scope="module")
def fp32(sample_bundle_fp32: Path) -> Iterator[LanguageModel]:
    """Over ONNX Runtime's kernels: logits depend on a call's width, in the last bits."""
    bundle = Bundle.open(sample_bundle_fp32)
    with LanguageModel(OnnxRuntimeSession(bundle, cache=False), load_tokenizer(bundle)) as model:
        yield model


@pytest.fixture(scope="module")
def small_bundle(export_sample: Callable[[str], Path]) -> Path:
    return export_sample("cpu-int4-fast")


@pytest.fixture(scope="module")
def native(small_bundle: Path, native_kernels: ctypes.CDLL) -> Iterator[LanguageModel]:  # noqa: ARG001
    """Over our own kernels: not one bit depends on it."""
    bundle = Bundle.open(small_bundle)
    with LanguageModel(NativeSession(bundle), load_tokenizer(bundle)) as model:
        yield model


@pytest.fixture
def drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts of one to nine tokens in turn, whatever they take and gain: a test must not depend on the clock."""
    turn = 0

    def choose(_: object, __: int, most: int, **___: float) -> int:
        nonlocal turn
        turn = turn % 9 + 1
        return min(most, turn)

    monkeypatch.setattr(DraftLength, "choose", choose)
    monkeypatch.setattr(DraftLength, "record_draft", lambda *_: None)
    monkeypatch.setattr(speculation, "_LONGEST_PAUSE", 0)


def assert_same_text(model: LanguageModel, prompt: str, tokens: int, **options: Any) -> tuple[int, int]:
    """The same tokens with drafts and without, unless two logits tie. Returns (tokens compared, accepted)."""
    fast = model.generate(prompt, max_new_tokens=tokens, ignore_eos=True, **options)
    plain = model.generate(prompt, max_new_tokens=tokens, ignore_eos=True, speculation="off")
    assert fast.speculation is not None
    ours, theirs = fast[0].token_ids, plain[0].token_ids
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one != other:
            assert model.session.exact_split != 1, "these kernels promise the same bits"
            ids = np.array([model.tokenizer.encode(prompt) + list(theirs[:index])])
            logits = model.session.run("prefill", ids, model.session.new_past(1))[0, 0]
            assert abs(float(logits[one]) - float(logits[other])) < TIE, f"token {index} of {prompt[:40]!r} differs"
            return index, fast.speculation.accepted
    return tokens, fast.speculation.accepted


@pytest.mark.usefixtures("drafts")
def test_prompt_lookup_gives_the_tokens_of_plain_decoding(fp32: LanguageModel, pages: list[str]) -> None:
    compared, accepted = np.sum(
        [assert_same_text(fp32, page, 220, speculation="prompt-lookup") for page in pages], axis=0
    )
    assert compared >= 2000
    assert accepted > 500


@pytest.mark.usefixtures("drafts")
@pytest.mark.parametrize(
    "options",
    [{}, {"repetition_penalty": 1.2}, {"temperature": 0.8, "top_p": 0.9, "seed": 3}],
    ids=str,
)
def test_over_native_kernels_drafts_change_no_bit(
    native: LanguageModel, pages: list[str], options: dict[str, Any]
) -> None:
    drafted = accepted = 0
    for page in pages:
        fast = native.generate(page, max_new_tokens=100, logprobs=3, **options)
        plain = native.generate(page, max_new_tokens=100, logprobs=3, speculation="off", **options)
        assert fast.generations == plain.generations  # log-probabilities to the last digit
        assert fast.speculation is not None and fast.speculation.method == "prompt-lookup"
        drafted += fast.speculation.drafted
        accepted += fast.speculation.accepted
    assert drafted > 50
    assert accepted > (0 if options else 200)


@pytest.mark.usefixtures("drafts")
def test_a_draft_model_gives_the_tokens_of_plain_decoding(
    fp32: LanguageModel, small_bundle: Path, pages: list[str]
) -> None:
    with helium_onnx.load(small_bundle, cache=False) as draft:
        model = LanguageModel(fp32.session, fp32.tokenizer, draft=draft)
        compared, accepted = np.sum([assert_same_text(model, page, 150) for page in pages[:5]], axis=0)
        sampled = model.generate(pages[0], max_new_tokens=60, temperature=0.7, top_k=40, seed=1, ignore_eos=True)
    assert compared >= 700
    assert accepted > 400  # the same checkpoint, in fewer bits
    assert sampled.speculation is not None and sampled.speculation.accepted > 10
    assert len(sampled[0].token_ids) == 60


# The prefix cache


class Recording:
    """Wraps a session; keeps a copy of each call's logits."""

    def __init__(self, session: Any, exact_split: int | None = None) -> None:
        self._session = session
        self.logits: list[np.ndarray[Any, Any]] = []
        self.exact_split = session.exact_split if exact_split is None else exact_split

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, phase: Any, input_ids: Any, past: Any) -> Any:
        logits = self._session.run(phase, input_ids, past)
        self.logits.append(logits.copy())
        return logits


def logits_of(model: LanguageModel, prompts: list[str], *, prefix_cache: int) -> tuple[list[Any], list[int]]:
    """The logits of every call for the prompts, one request after the other, and the tokens that were cached."""
    recording = Recording(model.session)
    again = LanguageModel(recording, model.tokenizer, prefix_cache=prefix_cache)
    options: Any = {"max_new_tokens": 8, "ignore_eos": True, "speculation": "off"}
    cached = [again.generate(prompt, **options)[0].cached_tokens for prompt in prompts]
    rows = again.generate(prompts, **options)  # and as one batch
    return recording.logits, cached + [row.cached_tokens for row in rows]


def assert_same_bits(model: LanguageModel, prompts: list[str]) -> list[int]:
    found, cached = logits_of(model, prompts, prefix_cache=100_000_000)
    plain, nothing = logits_of(model, prompts, prefix_cache=0)
    assert not any(nothing)
    for ours, theirs in zip(found, plain, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    return cached


@pytest.mark.parametrize("chunk", [16, 37])
def test_with_prefixes_of_whole_chunks_no_bit_of_the_logits_changes(
    fp32: LanguageModel, pages: list[str], monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    session = fp32.session
    assert isinstance(session, OnnxRuntimeSession)
    monkeypatch.setattr(session, "provider", dataclasses.replace(session.provider, prefill_chunk=chunk))
    assert session.exact_split == chunk
    prompts = [pages[0], pages[0][:300] + pages[1][:100], pages[0] + pages[2], pages[0][:300] + pages[1]]
    cached = assert_same_bits(fp32, prompts)
    assert cached[0] == 0 and min(cached[1:]) >= chunk
    assert {count % chunk for count in cached} == {0}


def test_over_native_kernels_a_prefix_may_end_anywhere(native: LanguageModel, pages: list[str]) -> None:
    assert native.session.exact_split == 1
    with_answer = pages[0] + native.generate(pages[0], max_new_tokens=100, ignore_eos=True).text
    cached = assert_same_bits(native, [pages[0], with_answer, pages[0][:200] + pages[1]])
    assert cached[1] > 0 and cached[2] > 0


@pytest.mark.usefixtures("drafts")
def test_generated_tokens_serve_the_next_prompt_over_native_kernels(native: LanguageModel, pages: list[str]) -> None:
    """What decode steps and accepted drafts left is what a prefill of the same tokens would have."""
    model = LanguageModel(native.session, native.tokenizer, prefix_cache=100_000_000)
    answer = model.generate(pages[0], max_new_tokens=120, ignore_eos=True)
    assert answer.speculation is not None and answer.speculation.drafted > answer.speculation.accepted > 0
    ids = [*native.tokenizer.encode(pages[0]), *answer[0].token_ids]
    # By ids: read as a text, what was generated may be tokenized otherwise.
    request = Request(([*ids, 300, 301],), 20, SamplingOptions(), (), 5, True, "off")
    generations = []
    for cache in (model._prefix_cache, None):
        loop = Loop(native.session, native.tokenizer, request, is_current=lambda: True, prefix_cache=cache)
        list(loop.events())
        generations.append(loop.result()[0])
    found, plain = generations
    assert found.cached_tokens == (len(ids) - 1) // 32 * 32 > answer[0].prompt_tokens
    assert (found.token_ids, found.logprobs) == (plain.token_ids, plain.logprobs)


def test_a_session_is_saved_and_continued(small_bundle: Path, sample_bundle_fp32: Path, tmp_path: Path) -> None:
    prompt = "To insert a table into a text document, choose the command. " * 90
    with helium_onnx.load(small_bundle) as model:
        first = model.generate(prompt, max_new_tokens=8)[0]
        model.save_session(tmp_path / "talk")
    with helium_onnx.load(small_bundle) as model:
        model.load_session(tmp_path / "talk")
        again = model.generate(prompt, max_new_tokens=8)[0]
    assert (first.cached_tokens, first.token_ids) == (0, again.token_ids)
    assert again.cached_tokens >= 512
    with helium_onnx.load(sample_bundle_fp32) as other, pytest.raises(SavedSessionError, match="another bundle"):
        other.load_session(tmp_path / "talk")


# Loading


def test_a_draft_that_cannot_be_one(small_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no folder"):
        helium_onnx.load(small_bundle, draft=tmp_path / "nothing")
    checkpoint = tiny.write_checkpoint(tmp_path / "c")
    other = helium_onnx.export(checkpoint, tmp_path / "b", recipe="cpu-fp32")
    with pytest.raises(TokenizerError, match="another tokenizer"):
        helium_onnx.load(small_bundle, draft=other.path)


def test_a_draft_is_loaded_beside_the_model(sample_bundle_fp32: Path, small_bundle: Path) -> None:
    with helium_onnx.load(sample_bundle_fp32, draft=small_bundle, context_length=100) as model:
        assert model._draft is not None
        assert model._draft.session.context_length == 100
        found = model.generate("To insert a table", max_new_tokens=60, ignore_eos=True)
    assert found.speculation is not None and found.speculation.method == "draft-model"
    assert found.speculation.accepted + found.speculation.steps == 59
