"""What a target of ``helium-onnx package`` is: a row, and what its function takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helium_onnx.bundle import Bundle
from helium_onnx.manifest import GraphRecord, TensorRecord
from helium_onnx.progress import ProgressCallback


@dataclass(frozen=True)
class Options:
    """What the caller asked for beside the target. ``soc`` names a chip; ``share_weights`` puts those of prefill and
    decode into one file.
    """

    soc: str | None = None
    share_weights: bool = True


@dataclass(frozen=True)
class Contents:
    """What a target's function wrote, as the package's manifest tells it.

    ``graphs`` and ``tensors`` are those of the package; ``record`` is what a runtime must know of it beside them, and
    ``tools`` are versions of what made it.
    """

    graphs: Mapping[str, GraphRecord]
    tensors: tuple[TensorRecord, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """A place that bundles are packaged for.

    ``form`` says which bundles it takes, and ``recipes`` are those to name to who has another; ``refusal`` gives what
    is wrong with a bundle, or None. ``options`` are the fields of Options that mean something here. ``check`` raises
    for options that cannot be, or for what this machine lacks, before any work; ``needed_bytes`` is room on the disk
    for the package; ``make`` writes it into a folder.
    """

    name: str
    summary: str
    form: str
    recipes: tuple[str, ...]
    options: tuple[str, ...]
    refusal: Callable[[Bundle], str | None]
    check: Callable[[Bundle, Options], None]
    needed_bytes: Callable[[Bundle, Options], int]
    make: Callable[[Bundle, Path, Options, ProgressCallback], Contents]
