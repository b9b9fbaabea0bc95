"""A folder that is written beside its target and put into place whole, or not at all.

Beside the target ``name`` stand, while it is written, ``.name.partial-<16 hex>`` (the new folder, or the old one just
after the two changed places) and, only on file systems that cannot exchange two names in one step,
``.name.replaced-<16 hex>`` (the old folder, for the instant between two renames). All functions but `export_error`
must be called under the target's lock (`helium_onnx.locking`): what they find of these names is of a killed export.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from pathlib import Path

from helium_onnx.errors import ExportError, ResourceError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNWRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.EBUSY, errno.EXDEV, errno.EIO, errno.ENOTDIR}
_CANNOT_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}
_AT_FDCWD = -100  # linux/fcntl.h: paths are relative to the working directory
_RENAME_EXCHANGE = 2  # linux/fs.h


def make_partial(target: Path) -> Path:
    """An empty folder beside ``target``, on the same file system, to be written and then given to `install`."""
    folder = _sibling(target, "partial")
    folder.mkdir()
    return folder


def recover(target: Path) -> None:
    """Undo what a killed export left: the old folder takes its name again, everything half-written is removed."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(partial|replaced)-[0-9a-f]{{16}}")
    found = [(match[1], path) for path in target.parent.iterdir() if (match := pattern.fullmatch(path.name))]
    for kind, path in found:
        if kind == "replaced" and not os.path.lexists(target):
            path.rename(target)
            fsync(target.parent)
        elif path.is_dir() and not path.is_symlink():
            # What cannot be removed takes room but is in nobody's way: the next export tries again.
            shutil.rmtree(path, ignore_errors=True)


def install(folder: Path, target: Path) -> None:
    """Flush ``folder`` to the disk and give it the name ``target``; a folder of that name is replaced.

    A reader sees the old folder or the new one, whole, whenever the machine stops. The old one is left beside the
    target for `recover` to remove.
    """
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            fsync(Path(parent, name))
        fsync(Path(parent))
    if not os.path.lexists(target):
        folder.rename(target)
    elif not exchange(folder, target):
        target.rename(_sibling(target, "replaced"))
        folder.rename(target)
    fsync(target.parent)


def exchange(first: Path, second: Path) -> bool:
    """Let two names change places in one step; False where kernel, C library or file system cannot."""
    import ctypes

    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))


def fsync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in _CANNOT_EXCHANGE):  # some network file systems flush no folders
            raise
    finally:
        os.close(descriptor)


def free_bytes(folder: Path) -> int | None:
    """Bytes that a user without privileges can still write there; None where the file system does not say."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize if status.f_blocks else None


def tree_bytes(folder: Path) -> int:
    """Bytes in the files under ``folder``; 0 where it is gone."""
    return sum(Path(parent, name).lstat().st_size for parent, _, names in os.walk(folder) for name in names)


def export_error(error: OSError, target: Path, needed: int) -> ExportError | None:
    """What ``error`` says of writing ``target``, ``needed`` bytes; None where it says nothing about writing."""
    if error.errno in _FULL:
        try:
            free = free_bytes(target.parent)
        except OSError:
            free = None
        return too_little_room(target, needed, free, because=error)
    if error.errno in _UNWRITABLE:
        return ExportError(
            f"{target} cannot be written.",
            found=error,
            expected="a folder that can be written and renamed",
            remedy="choose a target in another folder, or correct this one's permissions or mount",
        )
    return None


def too_little_room(target: Path, needed: int, free: int | None, because: OSError | None = None) -> ResourceError:
    """The disk of ``target`` has ``free`` bytes (None: unknown), ``needed`` are to be written."""
    room = "an unknown amount" if free is None else f"{free / 1e9:.3f} GB"
    return ResourceError(
        f"The disk has too little room for {target}.",
        found=f"{room} free" + (f" ({because})" if because else ""),
        expected=f"{needed / 1e9:.3f} GB needed",
        remedy="free some space, or choose a target on another disk",
    )


def _sibling(target: Path, kind: str) -> Path:
    return target.parent / f".{target.name}.{kind}-{secrets.token_hex(8)}"
