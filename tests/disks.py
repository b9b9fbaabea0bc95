"""Small disks to fill or to make read-only."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def tmpfs(folder: Path, options: str, *, lazy: bool = False) -> Iterator[None]:
    """A new file system at ``folder``, which is made. The test is skipped where nobody may mount one.

    ``lazy``: at the end its files may still be open.
    """
    if not _can_mount():
        pytest.skip("mounting a tmpfs takes root")
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", *(["--lazy"] if lazy else []), folder], check=True)


def make_read_only(folder: Path) -> None:
    """The file system at ``folder``."""
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)


@functools.cache
def _can_mount() -> bool:
    """A container's root may lack the right; making a mount namespace asks for the same one."""
    return os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0
