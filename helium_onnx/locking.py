"""One writer a target: a lock that the kernel releases, whatever kills its holder."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from helium_onnx.errors import ExportError, ResourceError, TargetLockedError

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def exclusive_lock(target: Path) -> Iterator[None]:
    """Hold ``.{name}.lock`` beside ``target`` for the time of the block; never waits.

    The lock is ``flock`` on the open file, not the file's existence: a file left by a killed process blocks nobody.
    The file holds the process id of its holder, for the error, and is removed at the end.

    Raises:
        TargetLockedError: another process (or another thread of this one) holds it.
        ResourceError: the disk has no room for one more file.
        ExportError: the lock file cannot be made: a read-only folder, or a file system without locks.
    """
    path = target.parent / f".{target.name}.lock"
    try:
        while (descriptor := _try_lock(path)) is None:  # its last holder removed the file while we opened it
            pass
    except BlockingIOError as error:
        raise TargetLockedError(
            f"{target} is being written by another export.",
            found=f"{error.strerror} holds {path}",
            remedy="wait for it to finish, stop it, or choose another target",
        ) from None
    except OSError as error:
        raise (ResourceError if error.errno in _FULL else ExportError)(
            f"Cannot lock {target} for writing.",
            found=error,
            expected="a folder that can be written, on a file system that has room and locks",
            remedy="choose a target in another folder, or correct the folder's permissions",
        ) from error
    try:
        yield
    finally:
        # Removed while the lock is held: who opened this file before sees, once it has the lock, that the name is gone
        # and starts again; who comes later makes a new file. Should this fail, a file stays that blocks nobody.
        with suppress(OSError):
            if _names(path, descriptor):
                path.unlink()
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough where a forked child has a copy
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    """The locked descriptor of the file that ``path`` names, or None where the name went away meanwhile.

    Raises:
        BlockingIOError: another one holds the lock; ``strerror`` says who.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _names(path, descriptor):
            with suppress(OSError):  # the number is only for another one's error: a full disk need not stop us here
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            return descriptor
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        who = f"process {holder}" if holder.isdigit() else "another process"
        raise BlockingIOError(error.errno, who) from None
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _names(path: Path, descriptor: int) -> bool:
    """Whether ``path`` still names the open file."""
    ours = os.fstat(descriptor)
    try:
        theirs = path.lstat()
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)
