"""What ``helium-onnx doctor`` found, as data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from helium_onnx.runtimes.cuda_probe import CudaReport

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``part`` is ``CPU``, ``CUDA``, ``others`` (providers) or ``bundle``.

    ``ok`` is True where it works, False where something stands in the way, and None where it is not there and nothing
    depends on it. ``remedy`` says what to do, in one line.
    """

    part: str
    name: str
    ok: bool | None
    detail: str
    remedy: str | None = None


@dataclass(frozen=True)
class Machine:
    """``cores`` are those that a session uses by default, ``kernels`` the instruction set of our own CPU kernels (None
    where they are not built). Bytes are of memory, within the limits of a container; None where nobody says."""

    processor: str = "unknown"
    architecture: str = "unknown"
    cores: int | None = None
    kernels: str | None = None
    memory_bytes: int | None = None
    available_bytes: int | None = None


@dataclass(frozen=True)
class RecipeFit:
    """Whether a recipe runs here. ``needed_bytes`` is what one text as long as the model's context takes, on the GPU
    for the provider cuda; ``context_length`` the longest that fits what is free. ``why`` is empty where nothing is to
    be said."""

    recipe: str
    execution_provider: str
    runs: bool
    needed_bytes: int | None
    free_bytes: int | None
    context_length: int | None
    why: str = ""


@dataclass(frozen=True)
class DoctorReport:
    """What this machine can run. ``model`` is what ``recipes`` were judged for: the 2 B model, or ``bundle``, whose
    own recipe then is the only one.

    ``versions`` are of helium-onnx, Python and onnxruntime; ``onnxruntime_package`` says which package's files are
    there, ``providers`` what they have.
    """

    versions: dict[str, str | None]
    onnxruntime_package: str | None
    providers: tuple[str, ...]
    machine: Machine
    cuda: CudaReport
    findings: tuple[Finding, ...]
    model: str
    bundle: str | None
    context_length: int | None
    recipes: tuple[RecipeFit, ...]

    @property
    def can_run(self) -> bool:
        """Whether any of ``recipes`` runs here."""
        return any(fit.runs for fit in self.recipes)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return {**dataclasses.asdict(self), "can_run": self.can_run}

    def render(self, console: Console) -> None:
        """Print it as a person reads it."""
        from helium_onnx.diagnosis import text

        text.render(self, console)
