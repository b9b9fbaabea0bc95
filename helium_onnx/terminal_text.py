"""Text in and out of the command line: prompts from arguments or stdin, continuations to stdout."""

from __future__ import annotations

import os
import sys

from helium_onnx.errors import UsageError
from helium_onnx.terminal import is_terminal, visible


class TextWriter:
    """Prints continuations to stdout, one prompt's after the other; pieces of the first as they come.

    On a terminal each continuation stands right after its prompt, which is dimmed. Elsewhere there is nothing but the
    texts, each with a newline at its end, and ``---`` between two of them.
    """

    def __init__(self, prompts: list[str], *, stream: bool) -> None:
        self._prompts, self._stream = prompts, stream
        self._waiting = [""] * len(prompts)
        self._terminal = is_terminal(sys.stdout)
        self._begun = False

    def write(self, index: int, piece: str) -> None:
        if index == 0 and self._stream:
            self._begin()
            self._put(piece)
        else:
            self._waiting[index] += piece

    def finish(self) -> None:
        """Print what waits. Without any text at all (an error came first), print nothing."""
        if not self._begun and not any(self._waiting):
            return
        self._begin()
        self._put(self._waiting[0] + "\n")
        for prompt, text in zip(self._prompts[1:], self._waiting[1:], strict=True):
            self._put("---\n", dim=True)
            self._put_prompt(prompt)
            self._put(text + "\n")

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._put_prompt(self._prompts[0])

    def _put_prompt(self, prompt: str) -> None:
        if self._terminal:
            self._put(prompt, dim=True)

    def _put(self, text: str, *, dim: bool = False) -> None:
        if sys.stdout is None:
            return
        if self._terminal:
            text = visible(text)
            if dim and "NO_COLOR" not in os.environ:
                text = f"\x1b[2m{text}\x1b[0m"
        sys.stdout.write(text)
        sys.stdout.flush()


def read_prompts(given: list[str]) -> list[str]:
    """The prompts of the command line; for ``-``, or without any, what is piped in."""
    if not given:
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError(
                "there is no prompt", remedy='helium-onnx generate OUT "Your text", or pipe a text into the command'
            )
        given = ["-"]
    if given.count("-") > 1:
        raise UsageError("stdin can be read once only", found=f"{given.count('-')} prompts that are -")
    return [_read_stdin() if prompt == "-" else prompt for prompt in given]


def _read_stdin() -> str:
    """All of stdin but one newline at its end. Bytes that are no UTF-8 become what they become in an argument."""
    data = b"" if sys.stdin is None else sys.stdin.buffer.read()
    if not data:
        raise UsageError("there is no prompt", found="nothing on stdin", expected="a text")
    text = data.decode("utf-8", "surrogateescape")
    return text.removesuffix("\r\n") if text.endswith("\r\n") else text.removesuffix("\n")
