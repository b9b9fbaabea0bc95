"""The command line as tests run it: in this process, as a process, on a terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from helium_onnx import cli

PROGRAM = [sys.executable, "-m", "helium_onnx"]


def invoke(*args: object, stdin: str | bytes | None = None) -> Result:
    """Run in this process, with stdout and stderr piped."""
    return CliRunner().invoke(cli.app, [str(arg) for arg in args], input=stdin)


def run(*args: Any, before: str = "", **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run as a process; ``before`` is shell text such as ``ulimit``."""
    command = [*PROGRAM, *(arg if isinstance(arg, bytes) else str(arg) for arg in args)]
    if before:
        command = ["bash", "-c", f'{before}; exec "$@"', "bash", *command]
    return subprocess.run(command, capture_output=True, timeout=120, **options)


def start(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
    """Start as a process that takes Ctrl-C even where the tests run in a shell's background."""
    return subprocess.Popen(
        [*PROGRAM, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def on_terminal(*args: object, env: dict[str, str] | None = None, stdin: int | None = None) -> tuple[int, str]:
    """Run on a terminal of 80 columns; exit code and all that it showed."""
    ours, theirs = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "CI")}
    environment |= {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24", **(env or {})}
    process = subprocess.Popen(
        [*PROGRAM, *map(str, args)],
        stdin=theirs if stdin is None else stdin,
        stdout=theirs,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            data = os.read(ours, 65536)
        except OSError:  # Linux's end of a terminal
            break
        if not data:
            break
        shown += data
    os.close(ours)
    return process.wait(timeout=60), shown.decode().replace("\r\n", "\n")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_plain(text: str | bytes) -> None:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    assert b"\x1b" not in data
    assert b"\r" not in data
