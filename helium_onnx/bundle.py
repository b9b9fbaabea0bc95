"""A bundle: the folder that export writes and every runtime reads.

    helium.json                       the manifest (helium_onnx.manifest)
    config.json generation_config.json tokenizer.json tokenizer_config.json genai_config.json
    onnx/prefill.onnx decode.onnx model.onnx    onnx/model.onnx_data (weights)

Reading never changes a bundle. Writing leaves the whole new bundle or what was there before, whatever interrupts it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from helium_onnx import atomic
from helium_onnx.errors import BundleError, ExportError, IntegrityError, TargetExistsError
from helium_onnx.locking import exclusive_lock
from helium_onnx.manifest import MANIFEST_FILE, FileRecord, Manifest
from helium_onnx.tasks import Task

#: Called with a file's name, the bytes hashed so far and the bytes to hash, both over all files.
Progress = Callable[[str, int, int], None]

_CHUNK = 4 << 20
_LARGEST_MANIFEST = 256 << 20  # a manifest has some 100 bytes a tensor; more than this is something else
_REMEDY = "copy or download the bundle again, or export it anew"


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest is sound and whose files have their sizes. `check_digests` reads their content."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read the manifest and check that each file is a regular file inside the folder, of the listed size.

        Raises:
            BundleError: no such folder, or one that holds no bundle; the error says what it looks like.
            FormatVersionError: written by a newer helium-onnx.
            IntegrityError: helium.json was changed, or files are missing, of another size, or links out of the folder.
        """
        folder = Path(path)
        try:
            if not stat.S_ISDIR(folder.stat().st_mode):
                raise BundleError(f"{folder} is not a folder.", found="a file", remedy=f"give {folder.parent}")
            if not os.path.lexists(folder / MANIFEST_FILE):
                found, remedy = _looks_like(folder)
                raise BundleError(f"{folder} has no {MANIFEST_FILE}.", found=found, expected="a bundle", remedy=remedy)
            if flaw := _flaw(folder, MANIFEST_FILE, None):
                raise IntegrityError(f"{folder} is damaged.", found=flaw, remedy=_REMEDY)
            text = (folder / MANIFEST_FILE).read_bytes().decode("utf-8")
        except (FileNotFoundError, NotADirectoryError):
            remedy = "check the path, or make the bundle: helium-onnx export"
            raise BundleError(f"There is no folder {folder}.", expected="a bundle", remedy=remedy) from None
        except OSError as error:
            raise BundleError(f"{folder} cannot be read.", found=error, remedy="correct its permissions") from error
        except ValueError as error:  # bytes that are no UTF-8, or a path with a NUL
            raise IntegrityError(f"{folder} has no readable {MANIFEST_FILE}.", found=error, remedy=_REMEDY) from error
        bundle = cls(folder, Manifest.from_json(text, source=str(folder / MANIFEST_FILE)))
        bundle._refuse([flaw for file in bundle.manifest.files if (flaw := _flaw(folder, file.path, file.size))])
        return bundle

    @property
    def model_config(self) -> dict[str, Any]:
        """The checkpoint's config.json."""
        return self.manifest.model_config

    @property
    def task(self) -> Task:
        """What the graphs compute, as ``text-generation``. BundleError for a task that this version does not know."""
        return self.manifest.known_task

    @property
    def digest(self) -> str:
        """SHA-256 in hex that identifies the bundle: it covers the manifest and thereby every file."""
        return self.manifest.sha256

    @property
    def total_bytes(self) -> int:
        """Bytes of all files but helium.json."""
        return sum(file.size for file in self.manifest.files)

    def graph_path(self, name: str) -> Path:
        """The file of graph ``name``, as ``prefill``. BundleError where the bundle has no such graph."""
        if name not in self.manifest.graphs:
            graphs = ", ".join(self.manifest.graphs) or "none"
            raise BundleError(f"{self.path} has no graph {name!r}.", expected=f"one of its graphs: {graphs}")
        return self.path / self.manifest.graphs[name].file

    def check_digests(self, progress: Progress | None = None) -> None:
        """Hash every file; IntegrityError names each one whose content is not what was exported."""
        flaws: list[str] = []
        done = 0
        for file in self.manifest.files:

            def step(count: int, name: str = file.path, before: int = done) -> None:
                if progress:
                    progress(name, before + count, self.total_bytes)

            try:
                flaw = _flaw(self.path, file.path, file.size)  # again: it may have been changed since open
                if not flaw and sha256(self.path / file.path, step) != file.sha256:
                    flaw = f"{file.path} has another content than was exported (its SHA-256 differs)"
            except OSError as error:
                flaw = f"{file.path} cannot be read: {error}"
            if flaw:
                flaws.append(flaw)
            done += file.size
        self._refuse(flaws)

    def _refuse(self, flaws: list[str]) -> None:
        if flaws:
            more = f"; and {len(flaws) - 10} more" if len(flaws) > 10 else ""
            raise IntegrityError(f"{self.path} is damaged.", found="; ".join(flaws[:10]) + more, remedy=_REMEDY)


class BundleWriter:
    """Writes a bundle: fill ``folder``, then `commit`. Leaving the block without a commit changes nothing.

        with BundleWriter(target, force=False, expected_bytes=size) as writer:
            ...                                  # write the files into writer.folder
            bundle = writer.commit(manifest)

    Args:
        target: the bundle's folder. Folders above it are made.
        force: replace a bundle, or an empty folder, that is there. Nothing else is ever replaced.
        expected_bytes: of the new bundle; an old one stays on the disk until the new one is complete.

    Raises (on entering, and from the block, whose OSErrors about writing are turned into these):
        TargetExistsError: the target is there, and ``force`` is not given or does not apply.
        TargetLockedError: another export is writing it.
        ResourceError: the disk has less than ``expected_bytes`` free, or becomes full.
        ExportError: the folder cannot be written.
    """

    folder: Path

    def __init__(self, target: str | os.PathLike[str], *, force: bool, expected_bytes: int) -> None:
        self.target = Path(os.path.abspath(target))  # noqa: PTH100  resolve() would follow a link and replace its goal
        self.force = force
        self.expected_bytes = expected_bytes
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            try:
                self.target.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(exclusive_lock(self.target))
                atomic.recover(self.target)
                self.check_target()
                free = atomic.free_bytes(self.target.parent)
                if free is not None and free < self.expected_bytes:
                    raise atomic.too_little_room(self.target, self.expected_bytes, free)
                stack.callback(atomic.recover, self.target)
                self.folder = atomic.make_partial(self.target)
            except OSError as error:
                told = atomic.export_error(error, self.target, self.expected_bytes)
                raise told or ExportError(f"{self.target} cannot be written.", found=error) from error
            self._cleanup = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        needed = self.expected_bytes
        if isinstance(error, OSError):
            needed = max(needed, atomic.tree_bytes(self.folder))
        self._cleanup.close()
        if isinstance(error, OSError) and (told := atomic.export_error(error, self.target, needed)):
            raise told from error

    def commit(self, manifest: Manifest) -> Bundle:
        """Complete ``manifest`` with the files' digests, write it, and put the folder into place.

        ``manifest.files`` is ignored. The bundle is read back and checked before it replaces anything.
        """
        names = sorted(
            Path(parent, name).relative_to(self.folder).as_posix()
            for parent, _, files in os.walk(self.folder)
            for name in files
            if Path(parent, name) != self.folder / MANIFEST_FILE
        )
        records = tuple(
            FileRecord(name, (self.folder / name).lstat().st_size, sha256(self.folder / name)) for name in names
        )
        text = dataclasses.replace(manifest, files=records).to_json()
        (self.folder / MANIFEST_FILE).write_text(text, encoding="utf-8", newline="\n")
        written = Bundle.open(self.folder)
        atomic.install(self.folder, self.target)
        return Bundle(self.target, written.manifest)

    def check_target(self) -> None:
        """Refuse early what `commit` must not replace. Raises TargetExistsError."""
        if not os.path.lexists(self.target):
            return
        replaceable = (
            self.target.is_dir()
            and not self.target.is_symlink()
            and ((self.target / MANIFEST_FILE).is_file() or not any(self.target.iterdir()))
        )
        if not replaceable:
            raise TargetExistsError(
                f"{self.target} exists and is not a bundle.",
                expected="a path that is free (with --force: or a bundle or an empty folder)",
                remedy="choose another target, or move this one away yourself",
            )
        if not self.force:
            raise TargetExistsError(f"{self.target} exists.", remedy="--force replaces it; or choose another target")


def sha256(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file in hex; ``progress`` is called with the bytes hashed so far."""
    digest, done, buffer = hashlib.sha256(), 0, memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            done += count
            if progress:
                progress(done)
    return digest.hexdigest()


def _flaw(folder: Path, name: str, size: int | None) -> str | None:
    """What is wrong with a file that the manifest lists; None where it is a regular file inside, of that size."""
    real, root = os.path.realpath(folder / name), os.path.realpath(folder)
    if os.path.commonpath((real, root)) != root:
        return f"{name} is a link out of the folder (to {real}); a download into a plain folder has none"
    try:
        status = Path(real).stat()
    except (FileNotFoundError, NotADirectoryError):
        return f"{name} is missing"
    except OSError as error:  # no permission, a link to itself, a name too long
        return f"{name} cannot be read: {error.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return f"{name} is not a regular file"
    if size is None:
        return f"{name} has {status.st_size} bytes, too many" if status.st_size > _LARGEST_MANIFEST else None
    return None if status.st_size == size else f"{name} has {status.st_size} bytes, not {size}"


def _looks_like(folder: Path) -> tuple[str, str]:
    """What a folder without helium.json is, and what to do about it."""
    names = sorted(entry.name for entry in folder.iterdir())
    if any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        return "this is a checkpoint", f"run helium-onnx export {folder}"
    if (folder.parent / MANIFEST_FILE).exists():
        return "a folder inside a bundle", f"give {folder.parent}"
    if inside := [name for name in names if (folder / name / MANIFEST_FILE).exists()]:
        return "a folder with bundles in it: " + ", ".join(inside[:5]), f"give one of them, as {folder / inside[0]}"
    if any(folder.glob("*.onnx")) or any(folder.glob("onnx/*.onnx")):
        return "ONNX files of another exporter", "export the checkpoint with helium-onnx export"
    if not names:
        return "an empty folder", "check the path, or make the bundle: helium-onnx export"
    return "files of another kind: " + ", ".join(names[:5]), "check the path, or make the bundle: helium-onnx export"
