"""Mixed precision: which matrix gets how many bits, within a budget of bytes or of loss.

Each matrix has some ways to be stored, each with its bytes and its estimated loss (sensitivity.py). All start with the
fewest bytes; then, one after the other, the step that lowers the loss most for each byte is taken (steps along the
lower convex hull of each matrix, so that no step hides a better one behind it). The result is the best possible for
the bytes it takes, but for what less than one more step would fill.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from helium_onnx.errors import UsageError
from helium_onnx.exporter.quantize.sensitivity import Costs
from helium_onnx.recipe import MatrixSettings, Override
from helium_onnx.sizes import read_size

#: 4 or 8 bits; the fewer weights share a scale, the better and the larger.
CANDIDATES = (
    MatrixSettings(4, 128, False),
    MatrixSettings(4, 64, False),
    MatrixSettings(4, 32, False),
    MatrixSettings(8, 128, True),
)
_BITS = re.compile(r"(\d+(\.\d+)?)\s*bits", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """``bytes`` of all files of the bundle, or ``bits`` a weight of linear layers, embedding and head, or ``max_kl``:
    the sum of the matrices' estimated mean KL divergences, in nats. One of them is not None.
    """

    bytes: int | None = None
    bits: float | None = None
    max_kl: float | None = None

    @classmethod
    def parse(cls, budget: str | None, max_kl: float | None) -> Budget | None:
        """From ``"1.2GB"`` or ``"4.8bits"``, or a KL divergence.

        Raises:
            UsageError: both are given, or the one that is given says no such thing.
        """
        if budget is not None and max_kl is not None:
            raise UsageError("--budget and --max-kl exclude each other", remedy="leave one of them out")
        if max_kl is not None:
            if not (math.isfinite(max_kl) and max_kl > 0):
                raise UsageError("max_kl is out of range", found=max_kl, expected="nats a token above 0, as 0.01")
            return cls(max_kl=max_kl)
        if budget is None:
            return None
        if (match := _BITS.fullmatch(budget.strip())) is not None:
            return cls(bits=float(match[1]))
        if (size := read_size(budget)) is not None:
            return cls(bytes=size)
        expected = 'bytes of the bundle, as "1.2GB" or "850MiB", or bits a weight, as "4.8bits"'
        raise UsageError("the budget cannot be read", found=repr(budget), expected=expected)


@dataclass(frozen=True)
class Choice:
    """How one matrix is stored: ``nbytes`` with scales and zero points, ``kl`` its own estimated loss in nats."""

    name: str
    settings: MatrixSettings
    nbytes: int
    kl: float


@dataclass(frozen=True)
class Allocation:
    """The choices for all matrices, and the budget they were made for."""

    budget: Budget
    choices: tuple[Choice, ...]
    weights: int

    @property
    def kl(self) -> float:
        return sum(choice.kl for choice in self.choices)

    @property
    def nbytes(self) -> int:
        return sum(choice.nbytes for choice in self.choices)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.weights

    def overrides(self) -> tuple[Override, ...]:
        """As a recipe says it: one override for each matrix."""
        return tuple(
            Override(c.name.removesuffix(".weight"), c.settings.bits, c.settings.block_size, c.settings.symmetric)
            for c in self.choices
        )

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        budget = {key: value for key, value in vars(self.budget).items() if value is not None}
        return {
            "budget": budget,
            "estimated_kl": self.kl,
            "bits_per_weight": self.bits_per_weight,
            "matrices": [
                {
                    "name": c.name,
                    "bits": c.settings.bits,
                    "block_size": c.settings.block_size,
                    "symmetric": c.settings.symmetric,
                    "nbytes": c.nbytes,
                    "estimated_kl": c.kl,
                }
                for c in self.choices
            ],
        }


def stored_bytes(shape: Sequence[int], settings: MatrixSettings) -> int:
    """What MatMulNBits takes for a matrix ``[rows, columns]``: data, scales and zero points."""
    rows, columns = shape
    if not settings.quantized:
        return 4 * rows * columns
    blocks = -(-columns // settings.block_size)
    scale = 4 if settings.scales == "float32" else 2
    zero_points = 0 if settings.symmetric else -(-blocks * settings.bits // 8)
    return rows * (blocks * settings.block_size * settings.bits // 8 + scale * blocks + zero_points)


def allocate(shapes: Mapping[str, tuple[int, ...]], costs: Costs, budget: Budget, *, other_bytes: int) -> Allocation:
    """Choose for every matrix of ``costs``, whose shapes are ``shapes``; ``other_bytes`` is the bundle's rest.

    Raises:
        UsageError: the least that the candidates take is above the budget, or the best is still above ``max_kl``.
    """
    hulls = {name: _hull(name, shapes[name], ways) for name, ways in costs.items()}
    at = dict.fromkeys(hulls, 0)
    weights = sum(math.prod(shapes[name]) for name in hulls)
    size = sum(hull[0].nbytes for hull in hulls.values())
    loss = sum(hull[0].kl for hull in hulls.values())
    limit = _limit(budget, weights, size, other_bytes)
    steps = [_step(hull, 0) for hull in hulls.values() if len(hull) > 1]
    heapq.heapify(steps)
    while steps and (budget.max_kl is None or loss > budget.max_kl):
        _, name, index = heapq.heappop(steps)
        hull = hulls[name]
        more = hull[index + 1].nbytes - hull[index].nbytes
        if limit is not None and size + more > limit:
            continue  # another matrix may have a smaller step
        size, loss = size + more, loss + hull[index + 1].kl - hull[index].kl
        at[name] = index + 1
        if index + 2 < len(hull):
            heapq.heappush(steps, _step(hull, index + 1))
    if budget.max_kl is not None and loss > budget.max_kl:
        raise UsageError(
            "no allocation reaches this loss",
            found=f"max_kl {budget.max_kl:g}",
            expected=f"at least {loss:.2g}, the estimate with every matrix at its best",
            remedy="allow more, or choose a recipe of more bits, as cpu-int8, or of none",
        )
    return Allocation(budget, tuple(hulls[name][index] for name, index in at.items()), weights)


def _limit(budget: Budget, weights: int, least: int, other_bytes: int) -> int | None:
    """Bytes for the matrices."""
    if budget.bytes is not None:
        if budget.bytes < least + other_bytes:
            raise UsageError(
                "the budget is below the minimum",
                found=f"{budget.bytes / 1e6:,.1f} MB",
                expected=f"at least {(least + other_bytes) / 1e6:,.1f} MB: 4 bits a weight, and "
                f"{other_bytes / 1e6:,.1f} MB of tables, graphs and tokenizer",
                remedy="allow more, or choose a smaller model",
            )
        return budget.bytes - other_bytes
    if budget.bits is not None:
        if budget.bits * weights < 8 * least:
            raise UsageError(
                "the budget is below the minimum",
                found=f"{budget.bits:g} bits a weight",
                expected=f"at least {8 * least / weights:.3f}, with scales and zero points",
                remedy="allow more",
            )
        return int(budget.bits * weights / 8)
    return None


def _hull(name: str, shape: tuple[int, ...], ways: Mapping[MatrixSettings, float]) -> list[Choice]:
    """From the smallest way to the best one, those on the lower convex hull of loss over bytes."""
    hull: list[Choice] = []
    for choice in sorted(
        (Choice(name, settings, stored_bytes(shape, settings), kl) for settings, kl in ways.items()),
        key=lambda choice: (choice.nbytes, choice.kl),
    ):
        if hull and choice.kl >= hull[-1].kl:
            continue  # larger and no better
        while len(hull) > 1 and _gain(hull[-2], choice) >= _gain(hull[-2], hull[-1]):
            hull.pop()
        hull.append(choice)
    return hull


def _gain(a: Choice, b: Choice) -> float:
    """Loss saved for each byte from ``a`` to the larger ``b``."""
    return (a.kl - b.kl) / (b.nbytes - a.nbytes)


def _step(hull: list[Choice], index: int) -> tuple[float, str, int]:
    return -_gain(hull[index], hull[index + 1]), hull[index].name, index
