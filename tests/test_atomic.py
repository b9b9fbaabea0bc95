"""Full disks, read-only disks and kill -9: the target is the old bundle, the new one, or absent."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import bundles
import disks
import pytest

from helium_onnx import atomic
from helium_onnx.bundle import Bundle, BundleWriter
from helium_onnx.errors import ExportError, ResourceError, TargetExistsError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return bundles.write_bundle(tmp_path / "bundle", "old").path


def test_too_little_room_is_found_first(target: Path) -> None:
    with pytest.raises(ResourceError, match=r"GB free[^$]*1000000\.000 GB needed"):
        bundles.write_bundle(target, "new", force=True, expected_bytes=10**15, before_commit=pytest.fail)
    bundles.assert_whole(target, "old")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, ResourceError),
        (errno.EDQUOT, ResourceError),
        (errno.EFBIG, ResourceError),
        (errno.EROFS, ExportError),
        (errno.EACCES, ExportError),
    ],
)
@pytest.mark.parametrize("step", ["block", "make_partial", "install", "recover"])
def test_refusing_disk_simulated(
    code: int, kind: type[ExportError], step: str, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        monkeypatch.undo()
        raise OSError(code, os.strerror(code))

    if step == "block":
        monkeypatch.setattr(bundles, "write_files", refuse)
    else:
        monkeypatch.setattr(atomic, step, refuse)
    with pytest.raises(kind) as caught:
        bundles.write_bundle(target, "new", force=True)
    assert os.strerror(code) in str(caught.value)
    assert caught.value.remedy
    bundles.assert_whole(target, "old")


def test_other_errors_of_the_block_stay_what_they_are(target: Path) -> None:
    with pytest.raises(FileNotFoundError), BundleWriter(target, force=True, expected_bytes=0):
        raise FileNotFoundError(errno.ENOENT, "checkpoint")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB. Where mounting is not permitted, the simulated tests above stand alone."""
    folder = tmp_path / "disk"
    with disks.tmpfs(folder, "size=128k"):
        yield folder


def test_exchange(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    (first / "a").touch()
    done = atomic.exchange(first, second)
    assert (second / "a").exists() == done
    assert (first / "a").exists() != done
    with pytest.raises(FileNotFoundError):
        atomic.exchange(first, tmp_path / "nothing")


@pytest.mark.parametrize("existing", [True, False])
def test_full_disk(existing: bool, disk: Path) -> None:
    target = disk / "bundle"
    if existing:
        bundles.write_bundle(target, "old")

    def fill(folder: Path) -> None:
        (folder / "large").write_bytes(bytes(200_000))  # far more than was expected

    with pytest.raises(ResourceError, match=r"No space left[^$]* GB needed"):
        bundles.write_bundle(target, "new", force=True, before_commit=fill)
    if existing:
        bundles.assert_whole(target, "old")
    assert [path.name for path in disk.iterdir()] == ["bundle"] * existing


def test_disk_full_to_the_last_byte(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    with pytest.raises(ResourceError):
        bundles.write_bundle(disk / "bundle")
    assert [path.name for path in disk.iterdir()] == ["filler"]


@pytest.mark.parametrize("name", ["bundle", "deeper/bundle"])
def test_read_only_disk(name: str, disk: Path) -> None:
    disks.make_read_only(disk)
    with pytest.raises(ExportError, match="Read-only"):
        bundles.write_bundle(disk / name)


def test_parent_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError):
        bundles.write_bundle(tmp_path / "file" / "bundle")


def test_reading_a_read_only_bundle(disk: Path) -> None:
    target = bundles.write_bundle(disk / "bundle").path
    disks.make_read_only(disk)
    bundles.assert_whole(target, "")


WRITE = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[3:]
import bundles
from helium_onnx import atomic
from helium_onnx.bundle import BundleWriter

rename = Path.rename
def slow_rename(self, goal):
    time.sleep(0.01)
    rename(self, goal)
    time.sleep(0.02)
Path.rename = slow_rename
exchange = atomic.exchange
def slow_exchange(*names):
    time.sleep(0.01)
    done = sys.argv[2] == "exchange" and exchange(*names)
    time.sleep(0.01)
    return done
atomic.exchange = slow_exchange

print("start", flush=True)
with BundleWriter(Path(sys.argv[1]), force=True, expected_bytes=10_000) as writer:
    for name, data in bundles.contents("new").items():
        (writer.folder / name).parent.mkdir(exist_ok=True)
        (writer.folder / name).write_bytes(data)
        time.sleep(0.005)
    writer.commit(bundles.manifest())
print("end", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("way", ["exchange", "two renames"])
@pytest.mark.parametrize("existing", [True, False])
def test_kill_9_at_any_moment(way: str, existing: bool, tmp_path: Path) -> None:
    """Twenty rounds in all: the target is absent or whole, and the next writer succeeds and tidies up."""
    rng = random.Random(f"{way} {existing}")
    target = tmp_path / "bundle"
    for _ in range(5):
        if existing:
            bundles.write_bundle(target, "old", force=True)
        else:
            shutil.rmtree(target, ignore_errors=True)
        command = [sys.executable, "-c", WRITE, str(target), way, str(ROOT), str(ROOT / "tests")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "start\n"
            time.sleep(rng.uniform(0, 0.2))
            child.send_signal(signal.SIGKILL)
            child.wait()
            finished = child.stdout.read() == "end\n"
        if target.exists():
            Bundle.open(target).check_digests()
        else:
            assert not finished
            assert way == "two renames" or not existing
        if existing and not finished:
            # A writer that may not replace must still find the old bundle (or the new one) under its name.
            with pytest.raises(TargetExistsError):
                bundles.write_bundle(target)
            Bundle.open(target).check_digests()
            assert bundles.beside(target) == []
        bundles.assert_whole(bundles.write_bundle(target, "next", force=True).path, "next")
