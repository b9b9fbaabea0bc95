"""What identifies a job: a small file beside its output, held against what a resumed job is asked to do."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from helium_onnx import atomic, strict_json
from helium_onnx._version import __version__
from helium_onnx.errors import BatchError

FORMAT_VERSION = 1
_LARGEST = 1 << 20
_REMEDY = "give the arguments that it began with, or begin anew: --force"


@dataclass(frozen=True)
class Job:
    """Everything that the rows of the output follow from.

    ``bundle`` is its digest; ``options`` are the task's, with the seed that is in use; ``rows`` is how the rows are
    read, run together and written; ``input`` is empty until the input has been read once: its rows, lines, bytes and
    SHA-256. Threads and workers are no part of it: a job may go on with others.
    """

    bundle: str
    task: str
    options: dict[str, Any]
    rows: dict[str, Any]
    input: dict[str, Any]
    finished: bool = False

    def with_seed_of(self, earlier: Job) -> Job:
        """The seed that was drawn for ``earlier``, where none is asked for."""
        if self.options.get("seed", 0) is not None:
            return self
        return replace(self, options={**self.options, "seed": earlier.options.get("seed")})

    def check_goes_on(self, earlier: Job, path: Path) -> None:
        """Raise BatchError unless this job would write the rows of ``earlier``. An empty input is not compared."""
        ours, theirs = self._plain(), earlier._plain()
        if not self.input:
            ours.pop("input")
            theirs.pop("input")
        changed = list(_differences(theirs, ours))
        if changed:
            raise BatchError(
                f"{path} is the output of another job",
                found="; ".join(f"{name} was {before}, is now {now}" for name, before, now in changed[:5]),
                expected="the same bundle, task, options and input",
                remedy=_REMEDY,
            )

    def save(self, path: Path) -> None:
        """Replace the file in one step, on the disk when this returns. Raises OSError."""
        text = {
            "format_version": FORMAT_VERSION,
            "helium_onnx": __version__,
            **self._plain(),
            "finished": self.finished,
        }
        partial = path.with_name(f"{path.name}.partial")
        try:
            with partial.open("wb") as file:
                file.write(json.dumps(text, ensure_ascii=False, indent=1).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        atomic.fsync(path.parent)

    def _plain(self) -> dict[str, Any]:
        plain: dict[str, Any] = json.loads(
            json.dumps(
                {
                    "bundle": self.bundle,
                    "task": self.task,
                    "options": self.options,
                    "rows": self.rows,
                    "input": self.input,
                }
            )
        )
        return plain


def job_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.job.json")


def read_job(output: Path) -> Job:
    """The job that ``output`` was begun by.

    Raises:
        BatchError: its file is missing, is none, or was written by a newer helium-onnx.
    """
    path = job_path(output)
    anew = "begin anew: --force"
    try:
        with path.open("rb") as file:
            value, flaws = strict_json.parse(file.read(_LARGEST).decode("utf-8"))
    except FileNotFoundError:
        raise BatchError(
            f"{output} cannot be continued: it has no job file", expected=str(path), remedy=f"{anew}, or rename it"
        ) from None
    except (OSError, ValueError) as error:
        raise BatchError(f"{path} cannot be read", found=error, remedy=anew) from error
    version = value.get("format_version") if isinstance(value, dict) else None
    if version != FORMAT_VERSION or flaws:
        raise BatchError(
            f"{path} is no job file that this helium-onnx reads",
            found=flaws[0] if flaws else f"format version {version!r}",
            expected=f"format version {FORMAT_VERSION}",
            remedy=f"use the helium-onnx that wrote it, or {anew}",
        )
    names = ("bundle", "task", "options", "rows", "input", "finished")
    kinds = (str, str, dict, dict, dict, bool)
    if missing := [name for name, kind in zip(names, kinds, strict=True) if not isinstance(value.get(name), kind)]:
        raise BatchError(f"{path} is damaged", found=f"no usable {', '.join(missing)}", remedy=anew)
    return Job(**{name: value[name] for name in names})


def _differences(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, str, str]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key), now.get(key), f"{name} {key}".strip())
    elif before != now:
        yield name, _shown(before), _shown(now)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"
