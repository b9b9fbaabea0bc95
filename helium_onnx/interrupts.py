"""How the command line answers Ctrl-C and the polite signals."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType
from typing import Literal

_SHOW_CURSOR = "\x1b[?25h"


class Interrupted(KeyboardInterrupt):
    """SIGINT, SIGTERM or SIGHUP arrived."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


class interrupts(AbstractContextManager["interrupts"]):  # noqa: N801  reads as a statement: with interrupts(...)
    """SIGINT, SIGTERM and SIGHUP raise ``Interrupted`` in the block.

    A second one ``quits`` at once, even while a native function runs, or is ``ignored``, so that nothing disturbs the
    clean-up after the first. Signals that are ignored already (``nohup``, a shell's ``&``) stay ignored.
    """

    def __init__(self, *, second: Literal["quits", "ignored"]) -> None:
        self.signal: int | None = None
        self._quits = second == "quits"
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        self._pipe: tuple[int, int] | None = None
        self._wakeup = -1

    def __enter__(self) -> interrupts:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._handle)
        if self._quits:
            self._pipe = os.pipe()
            for end in self._pipe:
                os.set_blocking(end, end == self._pipe[0])
            self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(self._pipe[0],), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._pipe is not None:
            signal.set_wakeup_fd(self._wakeup)
            os.close(self._pipe[1])  # the watcher sees the end and closes its own
        # A native function may have turned the interruption into an error of its own.
        if self.signal is not None and isinstance(error, Exception):
            raise Interrupted(self.signal) from error

    def check(self) -> None:
        """Raise ``Interrupted`` once more where the first was lost, as in a callback of a native function."""
        if self.signal is not None:
            raise Interrupted(self.signal)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
            raise Interrupted(number)

    def _watch(self, pipe: int) -> None:
        """Python's handler waits for native functions to return (a prefill: seconds); this thread need not."""
        seen = 0
        while data := os.read(pipe, 1):
            seen += data[0] in self._before
            if seen == 2:
                if sys.stderr is not None and sys.stderr.isatty():
                    os.write(2, _SHOW_CURSOR.encode())
                os._exit(128 + data[0])
        os.close(pipe)
