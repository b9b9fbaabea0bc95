"""A line for each check, and their count."""

from __future__ import annotations

from collections.abc import Callable


class FailedError(Exception):
    """A check failed; the text says how."""


class SkippedError(Exception):
    """It cannot be checked on this machine; the text says why."""


class Report:
    def __init__(self) -> None:
        self.passed = self.failed = self.skipped = 0

    def check(self, name: str, work: Callable[[], None]) -> bool:
        try:
            work()
        except SkippedError as reason:
            self.skip(name, str(reason))
            return False
        except FailedError as error:
            self.failed += 1
            print(f"FAILED   {name}\n{error}", flush=True)
            return False
        self.passed += 1
        print(f"ok       {name}", flush=True)
        return True

    def skip(self, name: str, reason: str) -> None:
        self.skipped += 1
        print(f"skipped  {name}: {reason}", flush=True)

    def __str__(self) -> str:
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{self.passed} passed, {self.failed} failed{skipped}"
