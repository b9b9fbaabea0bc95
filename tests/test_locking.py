"""One writer a target, whatever happened to the one before."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helium_onnx import locking
from helium_onnx.errors import ExportError, ResourceError, TargetLockedError
from helium_onnx.locking import exclusive_lock

ROOT = Path(__file__).parent.parent
HOLD = """
import sys, time
from pathlib import Path
from helium_onnx.locking import exclusive_lock
with exclusive_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(target: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock; killed with SIGKILL at the end at the latest."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(target)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "held\n"
            yield child
        finally:
            child.kill()


def test_nothing_is_left(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path / "bundle"):
        assert [path.name for path in tmp_path.iterdir()] == [".bundle.lock"]
        assert (tmp_path / ".bundle.lock").read_text() == f"{os.getpid()}\n"
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_after_an_exception(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), exclusive_lock(tmp_path / "bundle"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_another_process_is_named(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with holder(target) as child, pytest.raises(TargetLockedError) as caught, exclusive_lock(target):
        pass
    assert f"process {child.pid} holds" in str(caught.value)
    assert caught.value.remedy


def test_other_targets_are_free(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path / "a"), exclusive_lock(tmp_path / "b"):
        pass


def test_the_same_process_cannot_hold_it_twice(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path / "a"):
        with pytest.raises(TargetLockedError), exclusive_lock(tmp_path / "a"):
            pass
        assert (tmp_path / ".a.lock").exists(), "the refused one must not remove the holder's file"


def test_kill_leaves_a_file_that_blocks_nobody(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with holder(target) as child:
        child.kill()
        child.wait()
        assert (tmp_path / ".bundle.lock").exists()
        with exclusive_lock(target):
            assert (tmp_path / ".bundle.lock").read_text() == f"{os.getpid()}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_forked_child_does_not_keep_it(tmp_path: Path) -> None:
    """A worker forked while the lock is held has a copy of the descriptor and may outlive the block."""
    reading, writing = os.pipe()
    with exclusive_lock(tmp_path / "a"):
        child = os.fork()
        if child == 0:
            os.close(writing)  # or it would wait for itself
            os.read(reading, 1)
            os._exit(0)
    try:
        with exclusive_lock(tmp_path / "a"):
            pass
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(child, 0)


def test_file_removed_between_open_and_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last holder removes the file that we have just opened: its inode must not count as the lock."""
    path = tmp_path / ".a.lock"
    flock = locking.fcntl.flock
    removed = []

    def flock_after_removal(descriptor: int, operation: int) -> None:
        if not removed:
            path.unlink()
            removed.append(path)
        flock(descriptor, operation)

    monkeypatch.setattr(locking.fcntl, "flock", flock_after_removal)
    with exclusive_lock(tmp_path / "a"):
        assert path.exists()
        with pytest.raises(TargetLockedError), exclusive_lock(tmp_path / "a"):
            pass


def test_never_two_inside(tmp_path: Path) -> None:
    """Eight threads (each open file has a lock of its own) take and leave it as fast as they can."""
    inside, most, entered = [0], [0], [0]
    end = time.monotonic() + 1.5

    def contend() -> None:
        while time.monotonic() < end:
            try:
                with exclusive_lock(tmp_path / "a"):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    entered[0] += 1
                    time.sleep(0)
                    inside[0] -= 1
            except TargetLockedError:
                continue

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert entered[0] > 20
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.EROFS, ExportError), (errno.ENOLCK, ExportError), (errno.ENOSPC, ResourceError)]
)
def test_a_file_system_that_refuses(
    code: int, kind: type[ExportError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(
        locking.os if code != errno.ENOLCK else locking.fcntl, "open" if code != errno.ENOLCK else "flock", refuse
    )
    with pytest.raises(kind, match="Cannot lock"), exclusive_lock(tmp_path / "a"):
        pass


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("text")
    (tmp_path / ".a.lock").symlink_to("precious")
    with pytest.raises(ExportError, match="Cannot lock"), exclusive_lock(tmp_path / "a"):
        pass
    assert (tmp_path / "precious").read_text() == "text"
