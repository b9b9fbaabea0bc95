"""Saved sessions: what is read is what was written, or an error that says why, and nothing is lost."""

from __future__ import annotations

import fcntl
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from fake_session import FakeSession
from test_prefix_cache import BLOCK, TOKEN_BYTES, cache_of, check_sound, empty_past, past_of, restored

from helium_onnx.errors import GenerationError, SavedSessionError, UsageError
from helium_onnx.generation import saved_session
from helium_onnx.generation.model import LanguageModel
from helium_onnx.generation.prefix_cache import PrefixCache
from helium_onnx.tokenizer import Tokenizer

TEXTS = [list(range(20)), [*range(8), *range(50, 62)], [7] * 9]
IDENTITY = "a bundle's digest"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    cache = cache_of(100)
    for ids in TEXTS:
        cache.keep(ids, past_of(ids))
    path = tmp_path / "talk.session"
    saved_session.save(path, cache, IDENTITY)
    return path


def load(path: Path, cache: PrefixCache | None = None, identity: str = IDENTITY) -> PrefixCache:
    cache = cache_of(100) if cache is None else cache
    saved_session.load(path, cache, identity, empty_past())
    check_sound(cache)
    return cache


def test_what_was_saved_is_there_again(saved: Path) -> None:
    cache = load(saved)
    assert [restored(cache, [*ids, 99]) for ids in TEXTS] == [20, 20, 8]
    assert cache.nbytes == (5 + 3 + 2) * BLOCK * TOKEN_BYTES
    assert sorted(saved.parent.iterdir()) == [saved]  # nothing beside it


def test_it_is_a_plain_safetensors_file(saved: Path) -> None:
    with safetensors.safe_open(saved, framework="numpy") as file:
        metadata = file.metadata()
        assert metadata["format_version"] == "1"
        assert metadata["bundle"] == IDENTITY
        assert json.loads(metadata["blocks"]) == [["int64", 1, 1]]
        assert file.get_tensor("token_ids").shape == (10, BLOCK)
        assert file.get_tensor("3.0").shape == (1, BLOCK, 1)


def test_an_empty_session_is_one_too(tmp_path: Path) -> None:
    saved_session.save(tmp_path / "s", cache_of(10), IDENTITY)
    assert load(tmp_path / "s").nbytes == 0


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_every_bit_is_kept(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(0)

    class Past:
        lengths = np.array([0])
        kinds = ((3, 16), (2, 8))
        written: list[Any]

        def __init__(self) -> None:
            self.written = []

        def read_slots(self, start: int, stop: int) -> list[Any]:
            return [rng.integers(-99, 99, (h, stop - start, d)).astype(dtype) / 1 for h, d in self.kinds]

        def row(self, _: int) -> Past:
            return self

        def write_slots(self, tensors: list[Any]) -> None:
            self.written.append(tensors)

    class Typed(Past):
        def read_slots(self, start: int, stop: int) -> list[Any]:
            return [tensor.astype(dtype) for tensor in super().read_slots(start, stop)]

    cache, again, past = PrefixCache(BLOCK, 1 << 20), PrefixCache(BLOCK, 1 << 20), Typed()
    cache.keep(list(range(12)), past)
    saved_session.save(tmp_path / "s", cache, IDENTITY)
    saved_session.load(tmp_path / "s", again, IDENTITY, past)
    assert again.restore([*range(12), 1], past) == 12
    for entry, tensors in zip(cache.entries()[::1], past.written, strict=True):
        for ours, theirs in zip(entry.tensors, tensors, strict=True):
            assert ours.dtype == theirs.dtype == np.dtype(dtype)
            np.testing.assert_array_equal(ours, theirs)


def test_a_smaller_cache_takes_the_latest(saved: Path) -> None:
    cache = load(saved, cache_of(2))
    assert [restored(cache, [*ids, 99]) for ids in TEXTS] == [0, 0, 8]


def test_a_loaded_session_joins_what_is_there(saved: Path) -> None:
    cache = cache_of(100)
    cache.keep([3] * 12, past_of([3] * 12))
    load(saved, cache)
    assert restored(cache, [3] * 13) == 12
    assert restored(cache, [*TEXTS[0], 99]) == 20


# What cannot be used


def refused(path: Path, said: str, **options: Any) -> None:
    """Loading raises an error with all its parts, and the cache is as it was."""
    cache = cache_of(100)
    cache.keep([3] * 12, past_of([3] * 12))
    with pytest.raises(SavedSessionError, match=said) as caught:
        load(path, cache, **options)
    assert caught.value.expected or caught.value.found
    assert caught.value.remedy
    check_sound(cache)
    assert restored(cache, [3] * 13) == 12
    assert cache.nbytes == 3 * BLOCK * TOKEN_BYTES


def test_a_file_that_is_missing_or_none(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "There is no saved session")
    refused(tmp_path, str(tmp_path))
    (tmp_path / "text").write_text("This is no session, but a letter of some length.")
    refused(tmp_path / "text", "is damaged")
    (tmp_path / "empty").write_bytes(b"")
    refused(tmp_path / "empty", "is damaged")


def test_another_bundle_or_other_kernels(saved: Path) -> None:
    refused(saved, r"another bundle[\s\S]*a bundle's digest[\s\S]*other", identity="other")
    with pytest.raises(SavedSessionError, match=r"other kernels[\s\S]*blocks of 4 tokens[\s\S]*blocks of 32 tokens"):
        saved_session.load(saved, PrefixCache(1, 1 << 20), IDENTITY, empty_past())


def changed(path: Path, tensors: dict[str, Any] | None = None, drop: str = "", **metadata: str | None) -> Path:
    """The file with other tensors or metadata, and the hash that it had."""
    with safetensors.safe_open(path, framework="numpy") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        kept = {**file.metadata(), **metadata}
    found.update(tensors or {})
    found.pop(drop, None)
    safetensors.numpy.save_file(found, path, {key: value for key, value in kept.items() if value is not None})
    return path


def test_another_version(saved: Path) -> None:
    refused(changed(saved, format_version="2"), r"format version 2[\s\S]*format version 1")


def test_a_safetensors_file_of_another_kind(saved: Path) -> None:
    refused(changed(saved, format_version=None), "another safetensors file")
    safetensors.numpy.save_file({"weight": np.zeros(3)}, saved)
    refused(saved, "another safetensors file")


@pytest.mark.parametrize(
    "change",
    [
        {"tensors": {"parents": np.arange(10)}},
        {"tensors": {"parents": np.full(10, -2)}},
        {"tensors": {"parents": np.full((10, 1), -1)}},
        {"tensors": {"parents": np.full(9, -1)}},
        {"tensors": {"parents": np.array(-1)}},
        {"tensors": {"token_ids": np.zeros((10, BLOCK + 1), np.int64)}},
        {"tensors": {"token_ids": np.zeros((10, BLOCK), np.int64)}},
        {"tensors": {"3.0": np.zeros((1, BLOCK, 1), np.int64)}},
        {"tensors": {"3.0": np.zeros((1, BLOCK, 1), np.float32)}},
        {"tensors": {"3.0": np.zeros((1, BLOCK, 2), np.int64)}},
        {"tensors": {"99.0": np.zeros((1, BLOCK, 1), np.int64)}},
        {"drop": "3.0"},
        {"drop": "parents"},
        {"drop": "token_ids"},
        {"sha256": None},
        {"sha256": "0" * 64},
        {"blocks": "[]"},
    ],
    ids=str,
)
def test_contents_that_were_not_written_so(saved: Path, change: dict[str, Any]) -> None:
    refused(changed(saved, **change), "is damaged")


def test_a_file_cut_off_anywhere(saved: Path) -> None:
    whole = saved.read_bytes()
    for length in [*range(0, len(whole), 41), len(whole) - 1]:
        saved.write_bytes(whole[:length])
        refused(saved, "is damaged")


def test_a_bit_flipped_anywhere(saved: Path) -> None:
    whole = saved.read_bytes()
    header = struct.unpack("<Q", whole[:8])[0]
    for position in [*range(8 + header, len(whole), 37), *range(0, 8 + header, 29)]:
        damaged = bytearray(whole)
        damaged[position] ^= 1
        saved.write_bytes(damaged)
        if load_or_none(saved) is None:
            refused(saved, "session")
        else:  # a bit of the header that says the same in other letters: the blank at its end
            assert whole[position : position + 1] in b" "


def load_or_none(path: Path) -> PrefixCache | None:
    try:
        return load(path)
    except SavedSessionError:
        return None


# Writing


def test_a_file_that_cannot_be_written_leaves_the_old_one(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()
    errors: list[BaseException] = [OSError(28, "No space left on device"), KeyboardInterrupt()]
    for error in errors:

        def save_file(_: object, path: Path, __: object, error: BaseException = error) -> None:
            path.write_bytes(b"half")
            raise error

        monkeypatch.setattr(safetensors.numpy, "save_file", save_file)
        with pytest.raises((SavedSessionError, KeyboardInterrupt), match=r"No space|^$"):
            saved_session.save(saved, cache_of(10), IDENTITY)
        assert saved.read_bytes() == before
        assert list(saved.parent.iterdir()) == [saved]


def test_a_folder_that_is_none_or_a_target_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "no" / "such" / "folder", tmp_path / "folder"):
        with pytest.raises(SavedSessionError, match=r"cannot be written[\s\S]*remedy"):
            saved_session.save(path, cache_of(10), IDENTITY)
    assert list(tmp_path.rglob("*")) == [tmp_path / "folder"]


def test_what_a_killed_process_left_is_removed(saved: Path) -> None:
    left = saved.parent / f".{saved.name}.partial-{'0' * 16}"
    left.mkdir()
    (left / saved.name).write_bytes(b"half")
    saved_session.save(saved, cache_of(10), IDENTITY)
    assert list(saved.parent.iterdir()) == [saved]


def test_two_writers_at_once(saved: Path) -> None:
    lock = os.open(saved.parent / f".{saved.name}.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(SavedSessionError, match="being written by another process"):
        saved_session.save(saved, cache_of(10), IDENTITY)
    os.close(lock)


# Models


def test_a_conversation_is_continued_by_another_process(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def model() -> LanguageModel:
        return LanguageModel(FakeSession(), tokenizer, prefix_cache=1_000_000, identity="m")

    first = model()
    prompt = "one two three " * 12
    answer = first.generate(prompt, max_new_tokens=40, ignore_eos=True)[0]
    first.save_session(tmp_path / "s")
    second = model()
    second.load_session(str(tmp_path / "s"))
    again = second.generate(prompt, max_new_tokens=40, ignore_eos=True)[0]
    assert again.token_ids == answer.token_ids
    assert again.cached_tokens == (answer.prompt_tokens - 1) // 32 * 32


def test_loading_ends_a_stream_in_progress(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = LanguageModel(FakeSession(), tokenizer, prefix_cache=1_000_000, identity="m")
    model.save_session(tmp_path / "s")
    stream = model.stream("one two", max_new_tokens=50, ignore_eos=True)
    next(stream)
    model.load_session(tmp_path / "s")
    with pytest.raises(GenerationError, match="taken its keys and values over"):
        list(stream)


class Unsplit(FakeSession):
    exact_split = 0


@pytest.mark.parametrize(
    ("session", "options", "said"),
    [
        (FakeSession(), {"identity": "m"}, r"no prefix cache[\s\S]*--prefix-cache"),
        (FakeSession(), {"prefix_cache": 10_000}, "no bundle identifies"),
        (Unsplit(), {"prefix_cache": 10_000, "identity": "m"}, r"cannot be reused exactly[\s\S]*another provider"),
    ],
)
def test_models_without_anything_to_save(
    tokenizer: Tokenizer, tmp_path: Path, session: FakeSession, options: dict[str, Any], said: str
) -> None:
    model = LanguageModel(session, tokenizer, **options)
    for call in (model.save_session, model.load_session):
        with pytest.raises(UsageError, match=said):
            call(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []
