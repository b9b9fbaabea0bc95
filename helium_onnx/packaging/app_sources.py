"""The sources that packages for apps are made of: in a wheel beside this package, in a checkout under ``runtimes``."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
#: What is for who works on the library, and what a build leaves behind. Package.swift names ``Tests``: they stay.
_LEFT_OUT = (
    *("tests", "fuzz", "tools", "CMakePresets.json", "build", "out", "node_modules"),
    *(".gradle", ".build", ".swiftpm", "__pycache__", ".gitignore"),
)


def folder(name: str) -> Path:
    """The sources ``name``: ``c``, ``android`` or ``ios``, a folder in these, or ``kernels``."""
    if name == "kernels":
        return _PACKAGE / "kernels" / "src"
    packaged = _PACKAGE / "app_sources" / name
    return packaged if packaged.is_dir() else _PACKAGE.parent / "runtimes" / name


def copy(name: str, target: Path) -> None:
    """Copy the sources ``name`` into ``target``, which may be there. Raises OSError.

    Links are left out: in a checkout they lead to other sources, which a package names itself.
    """

    def left_out(parent: str, names: Iterable[str]) -> list[str]:
        return [
            entry
            for entry in names
            if entry in _LEFT_OUT or entry.endswith((".log", ".so")) or Path(parent, entry).is_symlink()
        ]

    shutil.copytree(folder(name), target, ignore=left_out, dirs_exist_ok=True)
