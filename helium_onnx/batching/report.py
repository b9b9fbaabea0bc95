"""What a job did."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class BatchReport:
    """What a finished job did.

    Attributes:
        rows: of the output, which are those of the input.
        new_rows: those that this run wrote; the others were there (``resume``).
        bad_rows: of the new ones, those that hold an ``error`` instead of a result.
        seconds: this run's, the load of the model included.
    """

    rows: int
    new_rows: int
    bad_rows: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers under the names of the fields, for JSON."""
        return asdict(self)
