"""What job.py answered, and how far two answers are apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Answer:
    """What job.py answered. ``logits``: float32 [prompts, vocab_size], of each prompt's last token."""

    session: str
    instruction_set: str | None
    torch: bool
    tokens: list[list[list[int]]]
    logits: NDArray[np.float32]
    stderr: str


def distance(one: Answer, other: Answer) -> float:
    """Largest difference of a logit, as a part of the first's largest."""
    assert np.isfinite(other.logits).all()
    return float(np.abs(one.logits - other.logits).max() / np.abs(one.logits).max())
