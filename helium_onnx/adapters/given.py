"""The adapters that a caller gives to an export: folders of peft's, with names or without."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from helium_onnx.config_fields import short
from helium_onnx.errors import UsageError

#: ``merge``: into the weights. ``runtime``: the graphs take adapters as inputs, and each request chooses one, or none.
AdapterMode: TypeAlias = Literal["merge", "runtime"]
#: One adapter, several, or several by name.
GivenAdapters: TypeAlias = (
    str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Mapping[str, str | os.PathLike[str]] | None
)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)


def given_adapters(given: GivenAdapters) -> list[tuple[str, Path]]:
    """Names and folders, as a caller may give them; without names, the folders' own. Raises UsageError."""
    if given is None:
        return []
    if isinstance(given, Mapping):
        named = [(name, Path(folder).expanduser()) for name, folder in given.items()]
    else:
        folders = [given] if isinstance(given, str | os.PathLike) else list(given)
        named = [(_own_name(folder), Path(folder).expanduser()) for folder in folders]
    return named


def _own_name(folder: str | os.PathLike[str]) -> str:
    """The folder's name, also of ``.``; of a link the link's."""
    return Path(os.path.abspath(folder)).name  # noqa: PTH100  resolve() would follow a link


def check_names(adapters: Sequence[tuple[str, Path]]) -> None:
    """Raise UsageError unless the names can be names of files, each once."""
    seen: set[str] = set()
    for name, folder in adapters:
        if not _NAME.fullmatch(name) or name.lower() in seen:
            raise UsageError(
                f"the adapter {folder} needs {'another' if name.lower() in seen else 'a'} name",
                found=short(name),
                expected="letters, digits, '.', '_' and '-', 64 at most; each name once",
                remedy="give it one: --adapter NAME=DIR",
            )
        seen.add(name.lower())


def checked_mode(asked: str) -> AdapterMode:
    """``asked`` as one of the modes; UsageError where it is none."""
    modes: tuple[AdapterMode, ...] = get_args(AdapterMode)
    for mode in modes:
        if mode == asked:
            return mode
    raise UsageError("there is no such adapter mode", found=repr(asked), expected=" or ".join(modes))


def named_folders(options: Sequence[str]) -> dict[str, Path] | list[Path] | None:
    """What the command line's ``DIR`` and ``NAME=DIR`` say; a path that is there is a path, whatever is in it."""
    pairs = [("", option) if "=" not in option or Path(option).exists() else option.split("=", 1) for option in options]
    if not any(name for name, _ in pairs):
        return [Path(folder) for _, folder in pairs] or None
    named: dict[str, Path] = {}
    for name, folder in pairs:
        name = name or _own_name(folder)
        if name in named:
            raise UsageError(
                f"two adapters have the name {short(name)}", remedy="give each its own: --adapter NAME=DIR"
            )
        named[name] = Path(folder)
    return named
