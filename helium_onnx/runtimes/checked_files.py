"""Which files' digests were found right before: hashing a gigabyte at every load would cost a second each time."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from helium_onnx.bundle import Bundle
from helium_onnx.progress import ProgressCallback, ProgressEvent

#: Below this a file is hashed faster than its stamp is looked up, and a record would only litter the disk.
REMEMBERED_FROM_BYTES = 64 << 20


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/helium-onnx``, or ``~/.cache/helium-onnx``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "helium-onnx"


def check_digests(bundle: Bundle, cache_dir: Path | None, progress: ProgressCallback) -> None:
    """Hash the bundle's files, large ones only when they are seen first: a changed bit in the weights would load
    silently and speak nonsense. Raises IntegrityError.
    """
    if bundle.total_bytes < REMEMBERED_FROM_BYTES:
        bundle.check_digests()
        return
    try:
        record = (cache_dir or default_cache_dir()) / "checked" / f"{bundle.digest[:16]}.json"
    except RuntimeError:  # a user without a home folder
        bundle.check_digests()
        return
    checked = CheckedFiles(bundle, record)
    if checked.known():
        return
    progress(ProgressEvent("load", "checking the bundle's digests, once"))
    bundle.check_digests()
    with contextlib.suppress(OSError):  # no room, or not ours to write: hashed again next time
        checked.remember()


@dataclass(frozen=True)
class FileStamp:
    """What tells cheaply that a file is the one that was read last time."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


class CheckedFiles:
    """Remembers in ``record`` that the files of a bundle had their digests, for each folder the bundle lies in."""

    def __init__(self, bundle: Bundle, record: Path) -> None:
        self._bundle, self._record = bundle, record

    def known(self) -> bool:
        """Whether the bundle's files are, by size, time and inode, those whose digests were found right before."""
        try:
            stamps = json.loads(self._record.read_text(encoding="utf-8"))[str(self._bundle.path.resolve())]
            return bool(stamps == self._stamps())
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def remember(self) -> None:
        """Note the files as they are. Raises OSError where the record cannot be written."""
        known = {}
        with contextlib.suppress(OSError, ValueError, AttributeError):
            before = json.loads(self._record.read_text(encoding="utf-8"))
            known = {folder: stamps for folder, stamps in before.items() if Path(folder).exists()}  # not what is gone
        self._record.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._record.with_suffix(f".{os.getpid()}")
        known[str(self._bundle.path.resolve())] = self._stamps()
        fresh.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        fresh.replace(self._record)

    def _stamps(self) -> dict[str, dict[str, int]]:
        files = self._bundle.manifest.files
        return {file.path: vars(FileStamp.of(self._bundle.path / file.path)) for file in files}
