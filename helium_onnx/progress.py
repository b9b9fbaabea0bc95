"""What a long operation says while it works: plain events, which a caller shows as it likes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class ProgressEvent:
    """``done`` of ``total`` bytes of ``stage`` are finished; ``item`` is what is being worked on (a tensor, a file).

    ``total`` is 0 where a stage has no measure of its own (a trace, a load): it starts with such an event. ``unit``
    says what is counted where it is not bytes.
    """

    stage: str
    item: str
    done: int = 0
    total: int = 0
    unit: Literal["bytes", "rows"] = "bytes"


ProgressCallback: TypeAlias = Callable[[ProgressEvent], None]


def silent(event: ProgressEvent) -> None:
    """The callback of those who do not want to know."""
