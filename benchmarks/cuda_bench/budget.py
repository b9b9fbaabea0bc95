"""The time that a run may take: parts are left out, and say so, rather than all be lost at the end."""

from __future__ import annotations

import time
from collections.abc import Callable


class OutOfTimeError(Exception):
    """There is no time left for what was to be done; its text goes into the results."""


class Budget:
    """``minutes`` from the moment it is made."""

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._seconds, self._began = clock, 60 * minutes, clock()

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._began

    @property
    def left(self) -> float:
        """Seconds until the end; below 0 after it."""
        return self._seconds - self.spent

    def need(self, seconds: float, what: str) -> None:
        """Raise OutOfTimeError unless there are so many left."""
        if self.left < seconds:
            raise OutOfTimeError(
                f"left out: {what} takes about {seconds:.0f} s, and {max(0, self.left):.0f} s are left"
            )

    def at_most(self, seconds: float) -> float:
        """So many, or what is left: a time limit for one thing."""
        return max(1.0, min(seconds, self.left))
