"""What drafts would have been worth, had they been made: seen for nothing, as the text goes on without them.

A draft that copies from the text is known before it is made. Where it does not promise to pay, steps are plain ones,
and the tokens that come are compared with those that would have been drafted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from helium_onnx.generation.draft_length import MOST_TOKENS


class Judge(Protocol):
    """Whom a watch tells what it saw: ``DraftLength``."""

    def record_watched(self, kind: int, position: int, accepted: bool) -> None: ...


@dataclass(slots=True)
class _Copy:
    """A draft of ``kind`` that was not made: its token ``position`` is the text's at ``source``."""

    kind: int
    source: int
    at: int  # where the text has, or will have, the token to compare it with
    position: int = 0


class DraftWatch:
    """Follows the latest copy within one text, and one that has come true so far."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._copies: list[_Copy] = []

    def compare(self, history_ids: list[int]) -> bool:
        """Plain steps have given the text's last tokens. Whether a copy has come true up to the last."""
        going_on = []
        for copy in self._copies:
            accepted = True
            while accepted and copy.at < len(history_ids) and copy.position < MOST_TOKENS:
                accepted = history_ids[copy.at] == history_ids[copy.source]
                self._judge.record_watched(copy.kind, copy.position, accepted)
                copy.source, copy.at, copy.position = copy.source + 1, copy.at + 1, copy.position + 1
            if accepted and copy.position < MOST_TOKENS:
                going_on.append(copy)
        self._copies = going_on
        return bool(going_on)

    def follow(self, kind: int, source: int, history_ids: list[int]) -> None:
        """A copy of ``kind`` from position ``source`` is not drafted after this text."""
        self._copies = [*self._copies[:1], _Copy(kind, source, len(history_ids))]

    def forget(self) -> None:
        """A draft is made: what comes of it is counted there."""
        self._copies = []
