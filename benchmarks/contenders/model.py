"""What a contender is: a runtime, weights made for it, and settings. Differences are data."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import Environment, timed

#: The contender's python, the checkpoint, and what is to be made: to the commands that make it.
Commands = Callable[[str, Path, Path], list[list[str]]]


def nothing(_python: str, _checkpoint: Path, _out: Path) -> list[list[str]]:
    return []


@dataclass(frozen=True)
class Weights:
    """A model in a runtime's own form.

    ``out`` names it below the folder of work; None is the checkpoint as it is. ``prepare`` is what the peer's own
    tools cannot do with a Helium, and is not timed; ``commands`` are the conversion. ``load`` is the file in ``out``
    that the worker is given ("": ``out`` itself), and ``files`` are the patterns of what the runtime reads there.
    """

    out: str | None
    commands: Commands = nothing
    prepare: Commands = nothing
    load: str = ""
    files: tuple[str, ...] = ("*",)

    def path(self, checkpoint: Path, work: Path) -> Path:
        """What the worker is given."""
        folder = self.folder(checkpoint, work)
        return folder / self.load if self.load else folder

    def folder(self, checkpoint: Path, work: Path) -> Path:
        return checkpoint if self.out is None else work / self.out

    def bytes(self, checkpoint: Path, work: Path) -> int:
        folder = self.folder(checkpoint, work)
        paths = {path.resolve() for pattern in self.files for path in folder.glob(pattern)}
        return sum(path.stat().st_size for path in paths if path.is_file())

    def forget(self, work: Path) -> None:
        """Let ``make`` make them anew."""
        self._record(work).unlink(missing_ok=True)

    def _record(self, work: Path) -> Path:
        return work / f"{self.out}.built.json"

    def make(self, python: str, checkpoint: Path, work: Path) -> dict[str, Any]:
        """Make the weights unless they are there. What it took: the sum of the commands' times, and the highest peak.

        Raises CalledProcessError.
        """
        out = self.folder(checkpoint, work)
        record = self._record(work)
        if self.out is not None and not record.exists():
            shutil.rmtree(out, ignore_errors=True)
            log = work / f"{self.out}.log"
            log.unlink(missing_ok=True)
            for command in self.prepare(python, checkpoint, out):
                with log.open("a") as file:
                    subprocess.run(command, check=True, stdout=file, stderr=file)
            runs = [timed(command, log) for command in self.commands(python, checkpoint, out)]
            built = {
                "seconds": sum(run["seconds"] for run in runs),
                "peak_resident_mb": max(run["peak_resident_mb"] for run in runs),
            }
            record.write_text(json.dumps(built))
        taken: dict[str, Any] = json.loads(record.read_text()) if self.out is not None else {}
        return {**taken, "bytes": self.bytes(checkpoint, work)}


@dataclass(frozen=True)
class Runtime:
    """A package, and how it is held against ours: its float32 must give the very same greedy tokens.

    ``float32`` is None where the runtime has no such form of the model.
    """

    name: str
    environment: Environment
    worker: str
    float32: Weights | None
    float32_settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    ``storage`` says how weights are stored. ``equal`` is the row of ours with weights of the same kind (bits, block,
    zero points, head), or None. ``settings`` go to the worker, with the reason beside them; ``alternatives`` are
    others that were tried, for ``peers.py tune``.
    """

    name: str
    runtime: Runtime
    weights: Weights
    storage: str
    equal: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    alternatives: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        return self.runtime.name == "helium-onnx"
