"""What a benchmark found: measurements, what the machine would allow, and the conditions both hold under."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from helium_onnx.benchmark.cases import LeftOut
from helium_onnx.benchmark.conditions import Conditions
from helium_onnx.benchmark.loading import Load
from helium_onnx.benchmark.machine import Limits
from helium_onnx.benchmark.traffic import Work

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Quantiles:
    """Of samples in seconds: the median, and what a tenth of them is below and above (interpolated linearly)."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Quantiles:
        p10, median, p90 = (float(value) for value in np.percentile(samples, (10, 50, 90)))
        return cls(median, p10, p90)


@dataclass(frozen=True)
class Ceiling:
    """What one call would take at the machine's limits, in seconds; None where a limit could not be measured.

    ``memory_seconds``: its bytes at the read bandwidth. ``arithmetic_seconds``: its operations at the rates of their
    types. ``binds`` is the larger of the two, which no implementation can beat while both limits hold; ``share`` is
    that time over the measured one (1: at the limit). Where one is missing, ``share`` is of the other.
    """

    memory_seconds: float | None
    arithmetic_seconds: float | None
    binds: Literal["memory", "arithmetic"] | None
    share: float | None

    @classmethod
    def of(cls, work: Work, limits: Limits | None, measured_seconds: float) -> Ceiling:
        read, int8, fp32 = best(limits)
        memory = None if read is None else work.total_bytes / (read * 1e9)
        parts = [
            0.0 if not operations else None if rate is None else operations / (rate * 1e9)
            for operations, rate in ((work.int8_operations, int8), (work.fp32_operations, fp32))
        ]
        known = [part for part in parts if part is not None]
        arithmetic = sum(known) if len(known) == len(parts) else None
        least = max((value for value in (memory, arithmetic) if value is not None), default=None)
        binds: Literal["memory", "arithmetic"] | None = None
        if memory is not None and arithmetic is not None:
            binds = "memory" if memory >= arithmetic else "arithmetic"
        return cls(memory, arithmetic, binds, None if least is None else least / measured_seconds)


def best(limits: Limits | None) -> tuple[float | None, float | None, float | None]:
    """GB/s read, int8 and float32 operations in 1e9 a second: the best of the repeats, or None."""
    if limits is None:
        return None, None, None
    read, int8, fp32 = (
        max(repeats, default=None)
        for repeats in (limits.read_gigabytes_per_second, limits.int8_gigaops, limits.fp32_gigaflops)
    )
    return read, int8, fp32


@dataclass(frozen=True)
class PrefillResult:
    """A prompt of ``tokens`` tokens; ``seconds`` are those to its first token in a loaded session."""

    tokens: int
    seconds: Quantiles
    samples: tuple[float, ...]
    work: Work
    ceiling: Ceiling

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds.median


@dataclass(frozen=True)
class DecodeResult:
    """Steps of ``batch`` rows from ``past`` tokens on; ``seconds`` are those of one step, which makes a token a row.

    ``work`` is that of the middle step of each visit.
    """

    past: int
    batch: int
    seconds: Quantiles
    samples: tuple[float, ...]
    work: Work
    ceiling: Ceiling

    @property
    def tokens_per_second(self) -> float:
        """Of all rows together."""
        return self.batch / self.seconds.median


@dataclass(frozen=True)
class Method:
    """How it was measured; ``text`` says it in sentences."""

    rounds: int
    steps: int
    seed: int
    text: str


@dataclass(frozen=True)
class BenchReport:
    """One bundle on one machine.

    ``kernels`` are those that ran it, ``session`` is the class that did. ``cold`` is None where the page cache cannot
    be dropped, ``limits`` where the processor does not compute (another execution provider than ``cpu``).
    """

    bundle: str
    digest: str
    recipe: str
    provider: str
    kernels: Literal["native", "onnxruntime"]
    session: str
    context_length: int
    conditions: Conditions
    method: Method
    limits: Limits | None
    cold: Load | None
    warm: Load
    prefill: tuple[PrefillResult, ...]
    decode: tuple[DecodeResult, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def fits_in_caches(self) -> bool:
        """Whether a step's weights may stay in the processor's caches: memory is then no limit, and can be beaten."""
        cache, smallest = self.conditions.cache_bytes, min((row.work.weight_bytes for row in self.decode), default=0)
        return cache is not None and 0 < smallest < 2 * cache

    def to_dict(self) -> dict[str, Any]:
        """All of it for JSON. Seconds, bytes, and 1e9 a second throughout, as the names say."""
        limits = None if self.limits is None else {**_plain(self.limits), "best": _best(self.limits)}
        return {
            "bundle": self.bundle,
            "digest": self.digest,
            "recipe": self.recipe,
            "provider": self.provider,
            "kernels": self.kernels,
            "session": self.session,
            "context_length": self.context_length,
            "conditions": _plain(self.conditions),
            "method": _plain(self.method),
            "limits": limits,
            "fits_in_caches": self.fits_in_caches,
            "load": {"cold": _plain(self.cold), "warm": _plain(self.warm)},
            "prefill": [_row(result) for result in self.prefill],
            "decode": [_row(result) for result in self.decode],
            "left_out": _plain(self.left_out),
        }

    def render(self, console: Console) -> None:
        """Print the report as tables of 80 columns."""
        from helium_onnx.benchmark.tables import render

        render(self, console)

    def write_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one self-contained page, whole or not at all. Raises HeliumOnnxError."""
        _page().write(self, Path(path))


def check_page(path: Path) -> None:
    """Raise what ``write_html`` would raise: a package is missing, or no file can be written there."""
    _page().check_target(path)


def _page() -> ModuleType:
    import helium_onnx

    with helium_onnx._needs("eval", "jinja2", "matplotlib"):
        from helium_onnx.benchmark import page
    return page


def _best(limits: Limits) -> dict[str, float | None]:
    names = ("read_gigabytes_per_second", "int8_gigaops", "fp32_gigaflops")
    return dict(zip(names, best(limits), strict=True))


def _row(result: PrefillResult | DecodeResult) -> dict[str, Any]:
    plain: dict[str, Any] = _plain(result)
    plain["work"]["total_bytes"] = result.work.total_bytes
    return {**plain, "tokens_per_second": result.tokens_per_second}


def _plain(value: Any) -> Any:
    """Dataclasses as objects, tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
