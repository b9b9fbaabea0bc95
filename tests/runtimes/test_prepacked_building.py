"""Building the cache of prepacked weights: whatever befalls that, a load succeeds with the same tokens.

Several processes at once, a kill in the middle, disks that are full or read-only, weights that cannot be packed so.
"""

from __future__ import annotations

import errno
import functools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import disks
import numpy as np
import pytest
import tiny
from prepacked_loads import BUILD, CHECK, PROMPT, Loaded, load, names

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.contract import WEIGHTS_FILE
from helium_onnx.locking import exclusive_lock
from helium_onnx.progress import ProgressEvent
from helium_onnx.recipe import MatrixSettings, Quantization, Recipe
from helium_onnx.runtimes import prepacked
from helium_onnx.runtimes.onnxruntime_session import OnnxRuntimeSession
from helium_onnx.runtimes.prepacked import PrepackedCache

#: At its end the cache may still be mapped.
tmpfs = functools.partial(disks.tmpfs, lazy=True)


# Processes


SCRIPT = """
import os, signal, sys, helium_onnx
def progress(event):
    if sys.argv[3] == "die" and event.stage == "cache" and "(decode)" in event.item:
        os.kill(os.getpid(), signal.SIGKILL)  # one graph is written, the other is not
model = helium_onnx.load(
    sys.argv[1], kernels="onnxruntime", cache=True, cache_dir=sys.argv[2], progress=progress
)
print(*model.generate(sys.argv[4], max_new_tokens=12)[0].token_ids)
"""


def start(bundle: Path, cache_dir: Path, how: str = "live") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(bundle), str(cache_dir), how, PROMPT],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_three_processes_at_once(copy: Path, tmp_path: Path, expected_tokens: tuple[int, ...]) -> None:
    processes = [start(copy, tmp_path) for _ in range(3)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert tuple(map(int, out.split())) == expected_tokens
    assert load(copy, tmp_path).said == []
    assert names(tmp_path / "prepacked") == [PrepackedCache(Bundle.open(copy), tmp_path).folder.name]


def test_while_another_process_builds_it_is_done_without(
    copy: Path, tmp_path: Path, expected_tokens: tuple[int, ...]
) -> None:
    cache = PrepackedCache(Bundle.open(copy), tmp_path)
    cache.root.mkdir(parents=True)
    with exclusive_lock(cache.folder):
        loaded = load(copy, tmp_path)
    assert "another process is building it" in loaded and BUILD not in loaded
    assert loaded.token_ids == expected_tokens
    assert BUILD in load(copy, tmp_path)


def test_a_build_that_was_killed_leaves_nothing_that_matters(
    copy: Path, tmp_path: Path, expected_tokens: tuple[int, ...]
) -> None:
    process = start(copy, tmp_path, "die")
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    folder = PrepackedCache(Bundle.open(copy), tmp_path).folder
    leftovers = names(tmp_path / "prepacked")
    assert any(".partial-" in name for name in leftovers) and folder.name not in leftovers
    again = load(copy, tmp_path)
    assert BUILD in again and again.token_ids == expected_tokens
    assert names(tmp_path / "prepacked") == [folder.name]


def test_what_killed_builds_left_is_removed_before_room_is_asked_for(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else leftovers that fill the disk would stay for ever."""
    cache = PrepackedCache(Bundle.open(copy), tmp_path)
    leftover = cache.root / f".{cache.folder.name}.partial-abc"
    leftover.mkdir(parents=True)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0 if leftover.exists() else 1 << 40))
    assert BUILD in load(copy, tmp_path)


# Without a cache


def done_without(loaded: Loaded, expected_tokens: tuple[int, ...]) -> None:
    assert "not built: " in loaded
    assert loaded.token_ids == expected_tokens


def test_a_cache_that_cannot_be_a_folder(copy: Path, tmp_path: Path, expected_tokens: tuple[int, ...]) -> None:
    (tmp_path / "file").touch()
    done_without(load(copy, tmp_path / "file"), expected_tokens)


def test_a_cache_that_cannot_be_written(copy: Path, tmp_path: Path, expected_tokens: tuple[int, ...]) -> None:
    with tmpfs(tmp_path / "disk", "ro"):
        done_without(load(copy, tmp_path / "disk"), expected_tokens)
    with tmpfs(tmp_path / "disk2", "size=200m"):
        (tmp_path / "disk2" / "prepacked").mkdir()  # the folder is there, but no lock can be made in it
        disks.make_read_only(tmp_path / "disk2")
        done_without(load(copy, tmp_path / "disk2"), expected_tokens)


def test_a_sound_cache_is_used_where_it_cannot_be_written(
    copy: Path, cache_folder: Path, expected_tokens: tuple[int, ...], tmp_path: Path
) -> None:
    with tmpfs(tmp_path / "disk", "size=200m"):
        shutil.copytree(cache_folder.parent, tmp_path / "disk" / "prepacked")
        load(copy, tmp_path / "disk")  # the copies have other inodes: built once more
        os.utime(copy / WEIGHTS_FILE)  # and so the bundle has to be hashed, and that be noted
        disks.make_read_only(tmp_path / "disk")
        again = load(copy, tmp_path / "disk")
        assert again.said == [CHECK]
        assert again.token_ids == expected_tokens


def test_a_disk_without_the_room_that_is_needed(copy: Path, tmp_path: Path, expected_tokens: tuple[int, ...]) -> None:
    with tmpfs(tmp_path / "disk", "size=8m"):
        loaded = load(copy, tmp_path / "disk")
        assert "GB of disk needed" in loaded and BUILD not in loaded
        done_without(loaded, expected_tokens)


@pytest.mark.parametrize("size", ["1m", "7m", "13m"])
def test_a_disk_that_becomes_full(
    copy: Path, tmp_path: Path, expected_tokens: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    """Others write too: the room that was there at the start is gone in the middle."""
    with tmpfs(tmp_path / "disk", f"size={size}"):
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        done_without(load(copy, tmp_path / "disk"), expected_tokens)
        assert names(tmp_path / "disk" / "prepacked") == []


def test_a_write_that_fails(
    copy: Path, tmp_path: Path, expected_tokens: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(PrepackedCache, "_save", full)
    done_without(load(copy, tmp_path / "cache"), expected_tokens)
    assert names(tmp_path / "cache" / "prepacked") == []


def test_an_error_without_a_word(
    copy: Path, tmp_path: Path, expected_tokens: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(PrepackedCache, "_save", fail)
    loaded = load(copy, tmp_path / "cache")
    assert loaded.said[-1] == "not built: MemoryError"
    assert loaded.token_ids == expected_tokens


def test_packed_weights_at_odd_addresses_are_not_used(
    copy: Path, tmp_path: Path, expected_tokens: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the sample's own order 12,000 bytes of zero points come first, and the packed weights would be misread."""
    assert any(tensor.nbytes % 64 for tensor in Bundle.open(copy).manifest.tensors)
    monkeypatch.setattr(prepacked, "initializers_last", lambda model, _: model)
    loaded = load(copy, tmp_path / "cache")
    assert "lie at multiples of 64" in loaded
    done_without(loaded, expected_tokens)


@pytest.mark.parametrize("vocab_size", [1032, 331])
@pytest.mark.parametrize(
    ("bits", "symmetric", "accuracy_level", "scales"),
    [
        *((4, True, 4, "float32"), (4, False, 4, "float32"), (8, False, 4, "float32"), (4, False, 1, "float32")),
        *((4, True, 4, "float16"), (4, False, 4, "float16"), (8, False, 4, "float16"), (32, True, 4, "float32")),
    ],
)
def test_no_form_of_the_weights_changes_a_logit(
    tmp_path: Path, vocab_size: int, bits: Any, symmetric: bool, accuracy_level: Any, scales: Any
) -> None:
    """With 1032 tokens the zero points are odd in size and go last; with 331 matrices are, and no order helps them."""
    matrix = MatrixSettings(bits=bits, block_size=16, symmetric=symmetric, scales=scales)
    recipe = Recipe(
        name="form",
        summary="of weights",
        quantization=Quantization(
            method="none" if bits == 32 else "round-to-nearest",
            accuracy_level=accuracy_level, linear=matrix, head=matrix, embedding=matrix,
        ),
    )  # fmt: skip
    checkpoint = tiny.write_checkpoint(tmp_path / "c", vocab_size=vocab_size)
    bundle = helium_onnx.export(checkpoint, tmp_path / "b", recipe=recipe)
    ids = np.arange(10, 30)[None]
    results = []
    for cache in (False, True):
        events: list[ProgressEvent] = []
        session = OnnxRuntimeSession(bundle, cache=cache, cache_dir=tmp_path, threads=1, progress=events.append)
        if vocab_size == 1032:
            assert not any("not built" in event.item for event in events), events
        past = session.new_past(1)
        results.append([session.run("prefill", ids, past).copy(), session.run("decode", ids[:, :1], past).copy()])
        session.close()
    for plain, packed in zip(*results, strict=True):
        np.testing.assert_array_equal(plain, packed)


def test_a_user_without_a_home(copy: Path, expected_tokens: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number without a name."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert load(copy, None, cache=False).token_ids == expected_tokens
    done_without(load(copy, None), expected_tokens)
