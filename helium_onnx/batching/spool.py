"""Texts that are no file, as one: a job reads its input twice."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from helium_onnx.batching.rows import Input
from helium_onnx.errors import UsageError


@contextmanager
def spooled(name: str) -> Iterator[Input]:
    """The file ``name``; for ``-``, what stdin holds, copied to a temporary file until the block ends.

    Raises:
        UsageError: stdin is a terminal, or closed.
    """
    if name != "-":
        yield Input(Path(name), name)
        return
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("there is nothing to read", found="a terminal", remedy="pipe rows into the command")
    with tempfile.NamedTemporaryFile(prefix="helium-onnx-", suffix=".stdin") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield Input(Path(file.name), "stdin")


@contextmanager
def spooled_texts(texts: Sequence[str]) -> Iterator[Input]:
    """A file of JSON Lines that holds ``texts``."""
    with tempfile.NamedTemporaryFile(prefix="helium-onnx-", suffix=".jsonl") as file:
        for text in texts:
            file.write(json.dumps({"text": text}).encode() + b"\n")
        file.flush()
        yield Input(Path(file.name), "the texts")
