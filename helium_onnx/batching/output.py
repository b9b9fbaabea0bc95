"""The output file: appended to in whole rows, so that whatever ends the process leaves something to go on with.

A row is written by one call and is in the kernel's hands then: killing the process loses none. Every few seconds, and
at the end, the file is flushed to the disk. When a machine stops, rows since the last flush may be missing or damaged;
`recover` cuts the file at the first line that is not whole, and what follows is done again.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Protocol

from helium_onnx import atomic
from helium_onnx.batching.rows import Row
from helium_onnx.errors import BatchError, HeliumOnnxError, ResourceError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SYNC_SECONDS = 5.0
_NUMBERED = re.compile(rb'\{"line": ([0-9]{1,18})[,}]')
_LONGEST = 1 << 30
_GO_ON = "the same command with --resume goes on where it stopped"


class Sink(Protocol):
    """Where output rows go."""

    def write(self, rows: Iterable[bytes]) -> None: ...


class Output:
    """The open file. Opening it makes it where it is not there; ``size`` is what holds whole rows."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock
        try:
            new = not path.exists()
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            if new:
                atomic.fsync(path.parent)
        except OSError as error:
            raise write_error(path, error) from error
        self.size = os.fstat(self._descriptor).st_size
        self._synced = clock()

    def write(self, rows: Iterable[bytes]) -> None:
        """Append rows, each with its newline.

        Raises:
            ResourceError: the disk is full. The rows before are whole.
            BatchError: the file cannot be written.
        """
        data = memoryview(b"".join(rows))
        size = self.size
        try:
            while data:
                count = os.pwrite(self._descriptor, data, size)
                data, size = data[count:], size + count
        except OSError as error:
            self.cut(self.size)
            raise write_error(self.path, error) from error
        self.size = size
        if self._clock() - self._synced >= _SYNC_SECONDS:
            self.sync()

    def cut(self, size: int) -> None:
        """Forget what is behind ``size`` bytes."""
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            raise write_error(self.path, error) from error
        self.size = size

    def sync(self) -> None:
        """Flush to the disk.

        Raises:
            ResourceError, BatchError: as ``write``.
        """
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise write_error(self.path, error) from error
        self._synced = self._clock()

    def close(self) -> None:
        """Flush and close.

        Raises:
            ResourceError, BatchError: as ``write``.
        """
        try:
            self.sync()
        finally:
            os.close(self._descriptor)

    def whole_lines(self) -> Iterator[bytes]:
        """The rows that are there, up to the first that is not whole: cut short, or holes that a crash left."""
        with self.path.open("rb") as file:
            yield from _whole_lines(file)


def recover_ordered(output: Output, rows: Iterator[Row]) -> int:
    """Hold the rows that are there against those of the input, in order; cut off half a row. Returns their number.

    Raises:
        BatchError: a row is not that of the input: the file was changed.
    """
    size = count = 0
    for line in output.whole_lines():
        row = next(rows, None)
        if row is None or not line.startswith(row.prefix):
            raise _changed(output.path, count + 1, "another row than the input has there")
        size += len(line)
        count += 1
    output.cut(size)
    return count


def recover_numbered(output: Output, lines: int) -> tuple[int, bytearray]:
    """The rows that are there, by their input line: how many, and a byte for each line from 0 to ``lines``, 1 if so.

    Raises:
        BatchError: a row has no number, one that the input lacks, or one that was there before.
    """
    done = bytearray(lines + 1)
    size = count = 0
    for line in output.whole_lines():
        match = _NUMBERED.match(line)
        number = int(match[1]) if match else 0
        if not 1 <= number <= lines or done[number]:
            found = "no line number" if match is None else f"line {number}, which is not to be"
            raise _changed(output.path, count + 1, found)
        done[number] = 1
        size += len(line)
        count += 1
    output.cut(size)
    return count, done


def write_error(path: Path, error: OSError) -> HeliumOnnxError:
    """``error`` of writing ``path`` in our form."""
    if error.errno in _FULL:
        return ResourceError(
            f"the disk has no room for {path}",
            found=error.strerror,
            expected="room for the rows that are missing",
            remedy=f"free some space; {_GO_ON}",
        )
    return BatchError(
        f"{path} cannot be written",
        found=error.strerror,
        expected="a regular file in a folder that can be written",
        remedy="choose another file, or correct the permissions",
    )


def _whole_lines(file: IO[bytes]) -> Iterator[bytes]:
    while line := file.readline(_LONGEST):
        if not (line.startswith(b"{") and line.endswith(b"}\n")) or b"\0" in line:
            return
        yield line


def _changed(path: Path, number: int, found: str) -> BatchError:
    return BatchError(
        f"{path} was changed since its job stopped",
        found=f"in its row {number}: {found}",
        expected="the rows that the job wrote",
        remedy="put the file back as it was, or begin anew: --force",
    )
