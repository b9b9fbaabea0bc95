"""Errors that are not ours, as the command line shows them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import assert_plain, invoke
from typer.testing import Result

import helium_onnx
from helium_onnx.progress import ProgressEvent


class TestErrors:
    """Errors that are not ours, raised by a command."""

    @pytest.fixture
    def failing(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
        def invoke_failing(error: BaseException, *options: str) -> Result:
            def inspect(_path: Path, **_: object) -> None:
                raise error

            monkeypatch.setattr(helium_onnx, "inspect", inspect)
            return invoke(*options, "inspect", "out")

        return invoke_failing

    @pytest.mark.parametrize(
        ("error", "code", "message"),
        [
            (MemoryError(), 1, "error: too little memory\n  found:    MemoryError\n"),
            (ImportError("libtorch.so: failed to map segment from shared object"), 1, "error: too little memory\n"),
            (RuntimeError("std::bad_alloc"), 1, "error: too little memory\n"),
            (OSError(12, "Cannot allocate memory"), 1, "error: too little memory\n"),
            (PermissionError(13, "Permission denied", "/x/y"), 1, "error: /x/y: Permission denied\n"),
            (KeyboardInterrupt(), 130, "interrupted\n"),
            (BrokenPipeError(32, "Broken pipe"), 141, ""),
            (
                KeyError("\x1b[31mred"),
                1,
                "error: internal error: KeyError: '\\x1b[31mred'\n  remedy:   please report it",
            ),
        ],
    )
    def test_message(self, error: BaseException, code: int, message: str, failing: Callable[..., Result]) -> None:
        result = failing(error)
        assert result.exit_code == code
        assert result.stderr.startswith(message)
        assert "Traceback" not in result.stderr
        assert_plain(result.stderr)

    def test_debug_shows_the_traceback(self, failing: Callable[..., Result]) -> None:
        result = failing(ZeroDivisionError("oops"), "--debug")
        assert "Traceback" in result.stderr
        assert "internal error: ZeroDivisionError: oops" in result.stderr

    def test_an_interruption_that_a_library_swallowed(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def export(*_: object, progress: Callable[..., None], **__: object) -> None:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            except KeyboardInterrupt:
                pass
            progress(ProgressEvent("weights", "a"))
            raise AssertionError("it went on")

        monkeypatch.setattr(helium_onnx, "export", export)
        assert invoke("export", "a", tmp_path).exit_code == 143

    def test_an_interruption_that_a_library_renamed(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def export(*_: object, **__: object) -> None:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            except KeyboardInterrupt as error:
                raise ImportError("could not load libsomething") from error

        monkeypatch.setattr(helium_onnx, "export", export)
        assert invoke("export", "a", tmp_path).exit_code == 143
