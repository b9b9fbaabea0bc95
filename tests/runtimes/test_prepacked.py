"""The cache of prepacked weights: it changes no token, and nothing that befalls it is worth a failure."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import tiny

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.contract import WEIGHTS_FILE
from helium_onnx.errors import IntegrityError
from helium_onnx.locking import exclusive_lock
from helium_onnx.progress import ProgressEvent
from helium_onnx.recipe import MatrixSettings, Quantization, Recipe
from helium_onnx.runtimes import prepacked
from helium_onnx.runtimes.onnxruntime_session import OnnxRuntimeSession
from helium_onnx.runtimes.prepacked import PrepackedCache

PROMPT = "Pour insérer un tableau"
BUILD, CHECK = "prepacking the weights", "checking the bundle's digests"


@dataclasses.dataclass
class Loaded:
    """What one load said of the cache, and the tokens of the model that it gave."""

    said: list[str]
    token_ids: tuple[int, ...]

    def __contains__(self, text: str) -> bool:
        return any(text in item for item in self.said)


def load(bundle: Path, cache_dir: Path, cache: bool | None = True) -> Loaded:
    events: list[ProgressEvent] = []
    with helium_onnx.load(
        bundle, kernels="onnxruntime", cache=cache, cache_dir=cache_dir, progress=events.append
    ) as model:
        token_ids = model.generate(PROMPT, max_new_tokens=12)[0].token_ids
    return Loaded([event.item for event in events if event.stage == "cache"], token_ids)


@pytest.fixture(scope="module")
def expected(sample_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, ...]:
    """The tokens without a cache."""
    return load(sample_bundle, tmp_path_factory.mktemp("none"), cache=False).token_ids


@pytest.fixture
def bundle(sample_bundle: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(sample_bundle, tmp_path / "bundle"))


@pytest.fixture
def folder(bundle: Path, tmp_path: Path, expected: tuple[int, ...]) -> Path:
    """The folder of a cache that was built for ``bundle`` under ``tmp_path / "cache"``."""
    assert load(bundle, tmp_path / "cache").token_ids == expected
    return PrepackedCache(Bundle.open(bundle), tmp_path / "cache").folder


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_it_is_built_once_and_changes_no_token(bundle: Path, tmp_path: Path, expected: tuple[int, ...]) -> None:
    first = load(bundle, tmp_path / "cache")
    assert BUILD in first and CHECK in first
    second = load(bundle, tmp_path / "cache")
    assert second.said == []  # nothing built, nothing hashed
    assert first.token_ids == second.token_ids == expected
    cache = PrepackedCache(Bundle.open(bundle), tmp_path / "cache")
    assert names(tmp_path / "cache" / "prepacked") == [cache.folder.name]
    assert names(cache.folder) == ["cache.json", "decode.onnx", "prefill.onnx", "sources.json", "weights.data"]
    assert cache.check()


def test_the_bundle_is_not_written_to(bundle: Path, tmp_path: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(bundle.rglob("*"))}
    load(bundle, tmp_path / "cache")
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(bundle.rglob("*"))} == before


def flip(path: Path) -> None:
    """One bit in the middle, and the time of a file that was written."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("spoil", [flip, halve, Path.unlink], ids=["flipped", "truncated", "missing"])
@pytest.mark.parametrize("name", ["weights.data", "prefill.onnx", "decode.onnx", "cache.json"])
def test_what_was_changed_is_built_anew(
    bundle: Path, folder: Path, expected: tuple[int, ...], name: str, spoil: Callable[[Path], None]
) -> None:
    spoil(folder / name)
    again = load(bundle, folder.parents[1])
    assert BUILD in again
    assert again.token_ids == expected
    assert load(bundle, folder.parents[1]).said == []
    assert PrepackedCache(Bundle.open(bundle), folder.parents[1]).check()


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "3", '"x"', '{"sha256": 1, "weights": []}', '{"weights": {"a": 1}}']
)
def test_a_record_that_is_none_is_written_anew(
    bundle: Path, folder: Path, expected: tuple[int, ...], text: str
) -> None:
    (folder / "cache.json").write_text(text)
    assert BUILD in load(bundle, folder.parents[1])
    (folder / "sources.json").write_text(text)
    again = load(bundle, folder.parents[1])
    assert again.said == [CHECK]  # the bundle is hashed again, the cache stays
    assert again.token_ids == expected
    assert load(bundle, folder.parents[1]).said == []


def test_a_folder_in_the_place_of_a_file(bundle: Path, folder: Path, expected: tuple[int, ...]) -> None:
    (folder / "weights.data").unlink()
    (folder / "weights.data").mkdir()
    again = load(bundle, folder.parents[1])
    assert BUILD in again
    assert again.token_ids == expected


def test_the_check_reads_what_the_stamp_cannot_see(bundle: Path, folder: Path) -> None:
    path = folder / "weights.data"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    flip(path)
    os.utime(path, ns=times)
    cache = PrepackedCache(Bundle.open(bundle), folder.parents[1])
    assert cache.is_sound()
    assert not cache.check()


# Keys


def test_another_version_of_onnxruntime_replaces_the_cache(
    bundle: Path, folder: Path, expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.parent / "another-bundles-cache").mkdir()
    monkeypatch.setattr(ort, "__version__", "9.9.9")
    again = load(bundle, folder.parents[1])
    assert BUILD in again and again.token_ids == expected
    assert names(folder.parent) == sorted(["another-bundles-cache", f"{folder.name.rpartition('-')[0]}-9.9.9"])


def test_another_processor_has_its_own(bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacked, "cpu_key", lambda: "0" * 12)
    assert BUILD in load(bundle, folder.parents[1])
    assert len(names(folder.parent)) == 2  # a home may be shared by machines of two kinds
    assert folder.name in names(folder.parent)


def test_the_processors_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(cpuinfo: str) -> str:
        monkeypatch.setattr(Path, "read_text", lambda *_, **__: cpuinfo)
        return prepacked.cpu_key()

    base = "processor\t: 0\nvendor_id\t: X\ncpu family\t: 6\nmodel\t\t: 1\nflags\t\t: avx avx2\ncpu MHz\t\t: 2000.1\n"
    assert (
        key(base)
        == key(base.replace("2000.1", "3100.7"))
        == key(base + base.replace("processor\t: 0", "processor\t: 1"))
    )
    assert key(base) != key(base.replace("avx2", "avx2 avx512f"))
    assert key(base) != key(base.replace("model\t\t: 1", "model\t\t: 2"))
    arm = "Features\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n"
    assert key(arm) != key(arm.replace("asimd", "asimd asimddp"))


# The bundle behind the cache


def test_a_touched_bundle_is_hashed_but_nothing_is_built(bundle: Path, folder: Path, expected: tuple[int, ...]) -> None:
    os.utime(bundle / WEIGHTS_FILE)
    again = load(bundle, folder.parents[1])
    assert again.said == [CHECK]
    assert again.token_ids == expected
    assert load(bundle, folder.parents[1]).said == []


def test_copies_of_a_bundle_share_the_cache(bundle: Path, folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    assert load(copy, folder.parents[1]).said == [CHECK]
    assert load(copy, folder.parents[1]).said == []
    assert load(bundle, folder.parents[1]).said == []
    assert names(folder.parent) == [folder.name]


@pytest.mark.parametrize("name", [WEIGHTS_FILE, "onnx/prefill.onnx", "tokenizer.json"])
def test_a_damaged_bundle_is_refused_with_a_warm_cache(bundle: Path, folder: Path, name: str) -> None:
    flip(bundle / name)
    for _ in range(2):
        with pytest.raises(IntegrityError, match=f"{name} has another content"):
            load(bundle, folder.parents[1])


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


def test_three_processes_at_once(bundle: Path, tmp_path: Path, expected: tuple[int, ...]) -> None:
    processes = [start(bundle, tmp_path) for _ in range(3)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert tuple(map(int, out.split())) == expected
    assert load(bundle, tmp_path).said == []
    assert names(tmp_path / "prepacked") == [PrepackedCache(Bundle.open(bundle), tmp_path).folder.name]


def test_while_another_process_builds_it_is_done_without(
    bundle: Path, tmp_path: Path, expected: tuple[int, ...]
) -> None:
    cache = PrepackedCache(Bundle.open(bundle), tmp_path)
    cache.root.mkdir(parents=True)
    with exclusive_lock(cache.folder):
        loaded = load(bundle, tmp_path)
    assert "another process is building it" in loaded and BUILD not in loaded
    assert loaded.token_ids == expected
    assert BUILD in load(bundle, tmp_path)


def test_a_build_that_was_killed_leaves_nothing_that_matters(
    bundle: Path, tmp_path: Path, expected: tuple[int, ...]
) -> None:
    process = start(bundle, tmp_path, "die")
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    folder = PrepackedCache(Bundle.open(bundle), tmp_path).folder
    leftovers = names(tmp_path / "prepacked")
    assert any(".partial-" in name for name in leftovers) and folder.name not in leftovers
    again = load(bundle, tmp_path)
    assert BUILD in again and again.token_ids == expected
    assert names(tmp_path / "prepacked") == [folder.name]


def test_what_killed_builds_left_is_removed_before_room_is_asked_for(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else leftovers that fill the disk would stay for ever."""
    cache = PrepackedCache(Bundle.open(bundle), tmp_path)
    leftover = cache.root / f".{cache.folder.name}.partial-abc"
    leftover.mkdir(parents=True)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0 if leftover.exists() else 1 << 40))
    assert BUILD in load(bundle, tmp_path)


# Without a cache


@contextmanager
def tmpfs(path: Path, options: str) -> Iterator[None]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def can_mount() -> bool:
    """A container's root may lack the right; making a mount namespace asks for the same one."""
    return os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


needs_mount = pytest.mark.skipif(not can_mount(), reason="mounting a tmpfs takes root")


def done_without(loaded: Loaded, expected: tuple[int, ...]) -> None:
    assert "not built: " in loaded
    assert loaded.token_ids == expected


def test_a_cache_that_cannot_be_a_folder(bundle: Path, tmp_path: Path, expected: tuple[int, ...]) -> None:
    (tmp_path / "file").touch()
    done_without(load(bundle, tmp_path / "file"), expected)


@needs_mount
def test_a_cache_that_cannot_be_written(bundle: Path, tmp_path: Path, expected: tuple[int, ...]) -> None:
    with tmpfs(tmp_path / "disk", "ro"):
        done_without(load(bundle, tmp_path / "disk"), expected)
    with tmpfs(tmp_path / "disk2", "size=200m"):
        (tmp_path / "disk2" / "prepacked").mkdir()  # the folder is there, but no lock can be made in it
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk2"], check=True)
        done_without(load(bundle, tmp_path / "disk2"), expected)


@needs_mount
def test_a_sound_cache_is_used_where_it_cannot_be_written(
    bundle: Path, folder: Path, expected: tuple[int, ...], tmp_path: Path
) -> None:
    with tmpfs(tmp_path / "disk", "size=200m"):
        shutil.copytree(folder.parent, tmp_path / "disk" / "prepacked")
        load(bundle, tmp_path / "disk")  # the copies have other inodes: built once more
        os.utime(bundle / WEIGHTS_FILE)  # and so the bundle has to be hashed, and that be noted
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk"], check=True)
        again = load(bundle, tmp_path / "disk")
        assert again.said == [CHECK]
        assert again.token_ids == expected


@needs_mount
def test_a_disk_without_the_room_that_is_needed(bundle: Path, tmp_path: Path, expected: tuple[int, ...]) -> None:
    with tmpfs(tmp_path / "disk", "size=8m"):
        loaded = load(bundle, tmp_path / "disk")
        assert "GB of disk needed" in loaded and BUILD not in loaded
        done_without(loaded, expected)


@needs_mount
@pytest.mark.parametrize("size", ["1m", "7m", "13m"])
def test_a_disk_that_becomes_full(
    bundle: Path, tmp_path: Path, expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    """Others write too: the room that was there at the start is gone in the middle."""
    with tmpfs(tmp_path / "disk", f"size={size}"):
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        done_without(load(bundle, tmp_path / "disk"), expected)
        assert names(tmp_path / "disk" / "prepacked") == []


def test_a_write_that_fails(
    bundle: Path, tmp_path: Path, expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(PrepackedCache, "_save", full)
    done_without(load(bundle, tmp_path / "cache"), expected)
    assert names(tmp_path / "cache" / "prepacked") == []


def test_an_error_without_a_word(
    bundle: Path, tmp_path: Path, expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(PrepackedCache, "_save", fail)
    loaded = load(bundle, tmp_path / "cache")
    assert loaded.said[-1] == "not built: MemoryError"
    assert loaded.token_ids == expected


def test_packed_weights_at_odd_addresses_are_not_used(
    bundle: Path, tmp_path: Path, expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the sample's own order 12,000 bytes of zero points come first, and the packed weights would be misread."""
    assert any(tensor.nbytes % 64 for tensor in Bundle.open(bundle).manifest.tensors)
    monkeypatch.setattr(prepacked, "initializers_last", lambda model, _: model)
    loaded = load(bundle, tmp_path / "cache")
    assert "lie at multiples of 64" in loaded
    done_without(loaded, expected)


@pytest.mark.parametrize("vocab_size", [1032, 331])
@pytest.mark.parametrize(
    ("bits", "symmetric", "accuracy_level"),
    [(4, True, 4), (4, False, 4), (8, False, 4), (4, False, 1), (32, True, 4)],
)
def test_no_form_of_the_weights_changes_a_logit(
    tmp_path: Path, vocab_size: int, bits: Any, symmetric: bool, accuracy_level: Any
) -> None:
    """With 1032 tokens the zero points are odd in size and go last; with 331 matrices are, and no order helps them."""
    matrix = MatrixSettings(bits=bits, block_size=16, symmetric=symmetric)
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


def test_a_user_without_a_home(bundle: Path, expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number without a name."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert load(bundle, None, cache=False).token_ids == expected  # type: ignore[arg-type]
    done_without(load(bundle, None), expected)  # type: ignore[arg-type]


# Where it is


def test_it_pays_from_a_size_on(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prepacked.PAYS_FROM_BYTES == 64 << 20
    assert load(bundle, tmp_path / "cache", cache=None).said == []
    assert not (tmp_path / "cache").exists()
    size = (bundle / WEIGHTS_FILE).stat().st_size
    cache = PrepackedCache(Bundle.open(bundle), tmp_path / "cache")
    monkeypatch.setattr(prepacked, "PAYS_FROM_BYTES", size + 1)
    assert not cache.pays()
    monkeypatch.setattr(prepacked, "PAYS_FROM_BYTES", size)
    assert cache.pays()
    assert BUILD in load(bundle, tmp_path / "cache", cache=None)


def test_the_default_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert prepacked.default_cache_dir() == tmp_path / ".cache" / "helium-onnx"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert prepacked.default_cache_dir() == tmp_path / "x" / "helium-onnx"
