"""What the command line shows beside its results: progress, errors, and how it answers Ctrl-C.

All of it goes to stderr. On a terminal it is drawn with rich; elsewhere it is plain lines, without escape codes or
carriage returns.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from helium_onnx.errors import HeliumOnnxError
from helium_onnx.interrupts import Interrupted
from helium_onnx.progress import ProgressCallback, ProgressEvent, silent

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

#: Control characters as pictures: what a file or a model says must not steer the terminal.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
#: How libraries word an allocation or a mapping that failed; few of them raise MemoryError.
_OUT_OF_MEMORY = ("bad_alloc", "failed to map segment", "cannot allocate memory", "can't allocate memory", "alloc_cpu")


def visible(text: str) -> str:
    """``text`` with control characters, but for newlines and tabs, replaced by pictures of them."""
    return text.translate(_PICTURES)


def size(count: float) -> str:
    """Bytes in decimal units: ``4.8 MB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}" if count < 1000 * scale else f"{count / scale:.0f} {unit}"
    return f"{count / 1e3:.1f} kB"


def amount(count: int, event: ProgressEvent) -> str:
    """``count`` in the event's unit: ``4.8 MB``, or ``1200 rows``."""
    return size(count) if event.unit == "bytes" else f"{count} {event.unit}"


def duration(seconds: float) -> str:
    """``4.6 s``, ``48 s``, ``2 min 05 s``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60} min {whole % 60:02d} s"


def is_terminal(stream: object) -> bool:
    """Whether a person reads what is written to ``stream``, and it can redraw (TERM is not dumb)."""
    isatty = getattr(stream, "isatty", None)
    return isatty is not None and bool(isatty()) and os.environ.get("TERM") not in ("dumb", "unknown")


# Progress


@contextmanager
def progress_display(*, quiet: bool = False, keep: bool = False) -> Iterator[ProgressCallback]:
    """Show the events that the callback gets. ``keep`` leaves a line for each finished stage on the terminal."""
    if quiet or sys.stderr is None:
        yield silent
    elif is_terminal(sys.stderr):
        from rich.console import Console

        display = BarProgress(Console(stderr=True), keep=keep)
        with display.live():
            yield display
    else:
        yield PlainProgress(lambda line: print(line, file=sys.stderr, flush=True))


class PlainProgress:
    """A line for each stage, and within one at most a line for each 10 % and second."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._stage = _Stage("", 0)
        self._tenth = 0
        self._last = 0.0

    def __call__(self, event: ProgressEvent) -> None:
        now = self._clock()
        if event.stage != self._stage.name:
            self._stage, self._tenth, self._last = _Stage(event.stage, now), 0, now
        if not event.total:
            self._write(f"{event.stage}: {visible(event.item)}")
            return
        tenth = 10 * event.done // event.total
        if tenth > self._tenth and (tenth == 10 or now - self._last >= 1):
            self._tenth, self._last = tenth, now
            parts = [f"{10 * tenth} % of {amount(event.total, event)}", *self._stage.pace(event, now)]
            self._write(f"{event.stage}: {', '.join(parts)}")


class BarProgress:
    """A line that is redrawn: a bar where the stage has a measure, the item alone where it has none."""

    def __init__(self, console: Console, *, keep: bool, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.spinner import Spinner

        self.console, self._keep, self._clock = console, keep, clock
        self._unicode = console.encoding.lower().startswith("utf")
        self._spinner = Spinner("dots" if self._unicode else "line", style="cyan")
        self._current: tuple[_Stage, ProgressEvent] | None = None

    @contextmanager
    def live(self) -> Iterator[None]:
        """Draw until the end of the block; what is unfinished then is wiped out."""
        from rich.live import Live

        with Live(
            get_renderable=self._draw,
            console=self.console,
            transient=True,
            refresh_per_second=10,
            redirect_stdout=False,
        ):
            yield
            self._finish_stage()

    def __call__(self, event: ProgressEvent) -> None:
        if self._current is None or self._current[0].name != event.stage:
            self._finish_stage()
            self._current = (_Stage(event.stage, self._clock()), event)
        else:
            self._current = (self._current[0], event)

    def _finish_stage(self) -> None:
        current, self._current = self._current, None
        if current is None or not self._keep:
            return
        from rich.text import Text

        (stage, event), now = current, self._clock()
        facts = [amount(event.done, event), *stage.pace(event, now)[:1]] if event.total else [visible(event.item)]
        mark = "✓" if self._unicode else "*"
        line = self._line(
            Text(mark, style="green"), stage.name, Text(", ".join(facts), style="dim"), duration(now - stage.started)
        )
        self.console.print(line)

    def _draw(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        if self._current is None:
            return Text("")
        (stage, event), now = self._current, self._clock()
        if not event.total:
            return self._line(self._spinner, stage.name, Text(visible(event.item)), duration(now - stage.started))
        bar = ProgressBar(event.total, event.done)
        facts = [f"{100 * event.done // event.total} %", f"{amount(event.done, event)} of {amount(event.total, event)}"]
        line = self._line(self._spinner, stage.name, bar, "  ".join([*facts, *stage.pace(event, now)]))
        return Group(line, Text(f"  {'':8} {visible(event.item)}", style="dim", overflow="ellipsis", no_wrap=True))

    def _line(self, mark: RenderableType, stage: str, middle: RenderableType, end: str) -> RenderableType:
        from rich.table import Table

        # On a wide terminal the end would be far from the beginning; the last columns are for the echo of ^C, which
        # would wrap otherwise, and the line could not be wiped out.
        line = Table.grid(padding=(0, 1), expand=True)
        line.width = min(100, self.console.width - 3)
        line.add_column(width=1)
        line.add_column(min_width=8, no_wrap=True)
        line.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        line.add_column(justify="right", no_wrap=True)
        line.add_row(mark, stage, middle, end)
        return line


class _Stage:
    """A stage and when it began."""

    def __init__(self, name: str, started: float) -> None:
        self.name, self.started = name, started

    def pace(self, event: ProgressEvent, now: float) -> list[str]:
        """Rate and remaining time, as far as they can be told yet."""
        elapsed = now - self.started
        if elapsed < 0.05 or event.done == 0:
            return []
        rate = event.done / elapsed
        left = (event.total - event.done) / rate
        if event.unit == "rows":
            speed = f"{rate:.3g} rows/s" if rate < 1000 else f"{rate:.0f} rows/s"
        else:
            speed = f"{rate / 1e6:.0f} MB/s" if rate >= 1e7 else f"{rate / 1e6:.1f} MB/s"
        return [speed, f"{duration(left)} left"] if left else [speed]


# Errors


def show_error(error: BaseException, *, debug: bool = False) -> int:
    """Print what went wrong to stderr; return the exit code. ``debug`` adds the traceback."""
    if debug and sys.stderr is not None:
        traceback.print_exception(error)
    if isinstance(error, BrokenPipeError):
        _silence_stdout()  # or Python would complain once more when it flushes it at the end
        return 128 + 13  # as a process that SIGPIPE killed
    if isinstance(error, KeyboardInterrupt):
        number = error.signal if isinstance(error, Interrupted) else signal.SIGINT
        by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
        _print(f"interrupted{by}", style="yellow")
        return 128 + number
    if not isinstance(error, HeliumOnnxError):
        error = _as_told(error)
    _print(f"error: {error.what}", style="bold red")
    for label, text in (("found:   ", error.found), ("expected:", error.expected), ("remedy:  ", error.remedy)):
        if text is not None:
            _print(text, label=f"  {label} ")
    return error.exit_code


def _as_told(error: BaseException) -> HeliumOnnxError:
    """An error of another library in our form."""
    text = str(error).strip()
    first = text.splitlines()[0][:300] if text else ""
    if isinstance(error, MemoryError) or any(words in text.lower() for words in _OUT_OF_MEMORY):
        return HeliumOnnxError(
            "too little memory",
            found=first or type(error).__name__,
            remedy="close other programs, raise the process's limits (ulimit -v), or use a smaller context or recipe",
        )
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename is not None else ""
        return HeliumOnnxError(f"{where}{error.strerror}", remedy="check the path, its permissions and the disk")
    return HeliumOnnxError(
        f"internal error: {type(error).__name__}: {first}",
        remedy="please report it, with the output of the same command as helium-onnx --debug ...",
    )


def say(text: str) -> None:
    """A line to stderr that is no error."""
    _print(text, style="dim")


def _print(text: str, *, label: str = "", style: str = "") -> None:
    """One paragraph to stderr. On a terminal it is wrapped under its label; words (paths) are never cut."""
    if sys.stderr is None:
        return
    text = visible(text)
    if not is_terminal(sys.stderr):
        print(f"{label}{text}", file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    width = min(120, shutil.get_terminal_size().columns)
    indent = " " * (len(label) or 7)
    text = textwrap.fill(
        text, width, initial_indent=label, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    rich_text = Text(text)
    # The kind of message is coloured, its words are not.
    rich_text.stylize(style or "dim", 0, len(label) or len(text.split(":")[0]))
    Console(stderr=True).print(rich_text, soft_wrap=True, highlight=False)


def _silence_stdout() -> None:
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def finish_output() -> int:
    """Flush stdout before the process ends; return 0, or the exit code of the error (a full disk) that was shown."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        code = show_error(error)
        _silence_stdout()
        return code
    return 0
