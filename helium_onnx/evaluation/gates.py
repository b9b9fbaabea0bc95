"""Bars that a bundle must pass, as a deployer's CI sets them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from helium_onnx.errors import UsageError
from helium_onnx.evaluation.fidelity import Figures


@dataclass(frozen=True)
class Gates:
    """``max_kl``: mean KL divergence in nats. ``min_top1``: rate from 0 to 1. ``max_ppl_ratio``: of perplexities.

    None asks nothing. Raises UsageError for a bar that nothing or everything would pass.
    """

    max_kl: float | None = None
    min_top1: float | None = None
    max_ppl_ratio: float | None = None

    def __post_init__(self) -> None:
        for option, value, low, high, expected in (
            ("max_kl", self.max_kl, 0.0, math.inf, "a number of nats from 0, as 0.05"),
            ("min_top1", self.min_top1, 0.0, 1.0, "a rate from 0 to 1, as 0.9"),
            ("max_ppl_ratio", self.max_ppl_ratio, 0.0, math.inf, "a ratio above 0, as 1.01"),
        ):
            if value is None:
                continue
            too_low = value <= low if option == "max_ppl_ratio" else value < low
            if not math.isfinite(value) or too_low or value > high:
                raise UsageError(f"{option} is out of range", found=value, expected=expected)

    def __bool__(self) -> bool:
        return any(value is not None for value in (self.max_kl, self.min_top1, self.max_ppl_ratio))


@dataclass(frozen=True)
class Failure:
    """A gate that ``bundle`` does not pass: its option, what was ``found`` and the ``bound`` that was set."""

    bundle: str
    gate: str
    what: str
    found: float
    bound: float

    def __str__(self) -> str:
        side = "at least" if self.gate == "min_top1" else "at most"
        option = self.gate.replace("_", "-")
        return f"{self.bundle}: {self.what} is {self.found:.6g}, not {side} {self.bound:.6g} (--{option})"


def failures(bundle: str, figures: Figures, gates: Gates) -> tuple[Failure, ...]:
    """The gates that ``figures`` do not pass; a figure that is NaN passes none."""
    kl, top1, ratio = figures.kl.value, figures.same_top1.value, figures.ratio
    found = []
    # Not "kl > bound": a NaN is not above a bound either.
    if gates.max_kl is not None and not kl <= gates.max_kl:
        found.append(Failure(bundle, "max_kl", "the mean KL divergence", kl, gates.max_kl))
    if gates.min_top1 is not None and not top1 >= gates.min_top1:
        found.append(Failure(bundle, "min_top1", "the rate of equal top tokens", top1, gates.min_top1))
    if gates.max_ppl_ratio is not None and not ratio <= gates.max_ppl_ratio:
        found.append(Failure(bundle, "max_ppl_ratio", "the ratio of perplexities", ratio, gates.max_ppl_ratio))
    return tuple(found)


def parse_rate(text: str) -> float:
    """``0.935`` or ``93.5%`` as a rate from 0 to 1. Raises UsageError."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+|[0-9]+\.)\s*(%?)\s*", text)
    value = float(match[1]) / (100 if match[2] else 1) if match else math.nan
    if not 0 <= value <= 1:
        hint = f"write {match[1]}% for a percentage" if match and not match[2] else None
        raise UsageError(f"{text!r} is no rate", expected="a number from 0 to 1, or a percentage as 93.5%", remedy=hint)
    return value
