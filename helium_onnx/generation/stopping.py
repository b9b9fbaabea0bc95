"""Stop strings over text that arrives in pieces.

An Aho-Corasick automaton (Aho and Corasick, 1975) reads each character once, so the work is linear in the text
whatever the number and length of the stop strings, and the result does not depend on where the text was cut.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from helium_onnx.errors import UsageError


class StopStrings:
    """Ends a text at the earliest stop string; of those that start there, the longest is the match.

    ``push`` gives back text that can no longer be part of a stop string and withholds the longest tail that still may.
    The stop string itself is never given back. While the match is open (``"\\n"`` was read, ``"\\n\\n"`` is also
    asked for), the text waits; ``match`` is set as soon as nothing can change it.

    Raises:
        UsageError: a stop string is empty or no str.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        for string in stop:
            if not isinstance(string, str) or not string:
                raise UsageError(
                    "A stop string cannot be used",
                    found=repr(string),
                    expected="a str of at least one character",
                    remedy="leave it out",
                )
        self.match: str | None = None
        self._stop = list(dict.fromkeys(stop))
        self._build()
        self._state = 0
        self._held: deque[str] = deque()  # characters read and not yet given back
        self._found: tuple[int, str] | None = None  # (offset in _held, stop string), still open

    def push(self, text: str) -> str:
        """Read ``text`` and return what is certain to be shown; nothing after a match."""
        if self.match is not None:
            return ""
        if not self._stop:
            return text
        shown: list[str] = []
        for character in text:
            self._held.append(character)
            self._state = self._step(self._state, character)
            self._consider(self._longest[self._state])
            open_from = len(self._held) - self._open_depth[self._state]
            if self._found is not None and self._found[0] < open_from:
                shown.append(self._close())
                break
            while len(self._held) > self._open_depth[self._state] and (self._found is None or self._found[0] > 0):
                shown.append(self._held.popleft())
                if self._found is not None:
                    self._found = (self._found[0] - 1, self._found[1])
        return "".join(shown)

    def finish(self) -> str:
        """The text has ended: decide an open match and return what was withheld before it, or all without one."""
        if self.match is not None:
            return ""
        return self._close()

    def _consider(self, string: str | None) -> None:
        """Take a stop string that ends here, if it starts earlier than the one found, or there and is longer."""
        if string is not None:
            start = len(self._held) - len(string)
            if self._found is None or start <= self._found[0]:
                self._found = (start, string)

    def _close(self) -> str:
        end = len(self._held)
        if self._found is not None:
            end, self.match = self._found
        text = "".join(self._held.popleft() for _ in range(end))
        self._held.clear()
        return text

    def _step(self, state: int, character: str) -> int:
        while state and character not in self._next[state]:
            state = self._fail[state]
        return self._next[state].get(character, 0)

    def _build(self) -> None:
        """A state is a prefix of some stop string, 0 the empty one.

        ``_fail``: the longest proper suffix that is a state. ``_longest``: the longest stop string that ends in the
        state. ``_open_depth``: length of the longest suffix (itself included) that more text could extend.
        """
        self._next: list[dict[str, int]] = [{}]
        self._longest: list[str | None] = [None]
        depth = [0]
        for string in self._stop:
            state = 0
            for character in string:
                if character not in self._next[state]:
                    self._next[state][character] = len(self._next)
                    self._next.append({})
                    depth.append(depth[state] + 1)
                    self._longest.append(None)
                state = self._next[state][character]
            self._longest[state] = string
        self._fail = [0] * len(self._next)
        self._open_depth = [0] * len(self._next)
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            for character, child in self._next[state].items():
                self._fail[child] = self._step(self._fail[state], character)
                queue.append(child)
            self._longest[state] = self._longest[state] or self._longest[self._fail[state]]
            self._open_depth[state] = depth[state] if self._next[state] else self._open_depth[self._fail[state]]
