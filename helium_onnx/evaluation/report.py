"""What the deep form of validate found: figures, their parts, and the conditions they hold under."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from helium_onnx.evaluation.fidelity import PERCENTILES, Figures
from helium_onnx.evaluation.gates import Failure, Gates, failures
from helium_onnx.evaluation.greedy import GreedyRow
from helium_onnx.evaluation.layers import LayerRow

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Conditions:
    """What the figures depend on. ``against`` and ``text`` are as they were given; ``tokens`` counts ``<s>`` too.

    ``threads`` are those of the bundle's session, 0 where it ran on a GPU, which ``machine`` then names first.
    """

    against: str
    text: str
    windows: int
    tokens: int
    max_tokens: int
    prompt_tokens: int
    max_new_tokens: int
    threads: int
    machine: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Storage:
    """Bytes of the whole bundle and of its weights file; bits per weight over all matrices and for each part."""

    bundle_bytes: int
    weights_bytes: int
    bits_per_weight: dict[str, float]


@dataclass(frozen=True)
class WorstPosition:
    """A position of large divergence. ``context`` is the text before it, ``target`` the token that follows."""

    lang: str | None
    line: int
    position: int
    kl: float
    max_abs: float
    context: str
    target: str
    reference: str
    bundle: str


@dataclass(frozen=True)
class Histogram:
    """Counts of positions by log10 of their KL divergence; ``edges`` has one entry more than ``counts``.

    What is below the first edge (0 among it) is counted in the first bin.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class GreedySummary:
    """Greedy texts of the bundle beside the reference's: equal tokens before they part.

    ``mean_equal`` counts a text that never parts with all its tokens, so it is a lower bound where ``equal_texts`` is
    not 0. ``median_equal`` is None where half of the texts or more never part.
    """

    texts: int
    equal_texts: int
    mean_equal: float
    median_equal: float | None


@dataclass(frozen=True)
class FidelityReport:
    """One bundle beside the PyTorch model in float32, on a file of texts.

    ``warning`` says that the checkpoint is not the one that the bundle was exported from, where that is so.
    ``max_abs_by_position`` has max |logit - reference logit| over windows, for each position in the window.
    """

    bundle: str
    recipe: str
    warning: str | None
    conditions: Conditions
    figures: Figures
    languages: dict[str, Figures]
    max_abs_by_position: tuple[float, ...]
    histogram: Histogram
    worst: tuple[WorstPosition, ...]
    greedy: tuple[GreedyRow, ...]
    layers: tuple[LayerRow, ...]
    storage: Storage

    def failures(self, gates: Gates) -> tuple[Failure, ...]:
        """The gates that this bundle does not pass. A figure that is NaN passes none."""
        return failures(self.bundle, self.figures, gates)

    @property
    def greedy_summary(self) -> GreedySummary:
        parted = sorted(row.equal for row in self.greedy if row.parts)
        texts, equal = len(self.greedy), len(self.greedy) - len(parted)
        # Those that never part stand behind all others.
        middle = [parted[i] if i < len(parted) else None for i in ((texts - 1) // 2, texts // 2)]
        low, high = middle[0], middle[1]
        return GreedySummary(
            texts=texts,
            equal_texts=equal,
            mean_equal=sum(row.equal for row in self.greedy) / texts,
            median_equal=None if low is None or high is None else (low + high) / 2,
        )

    def to_dict(self, gates: Gates | None = None) -> dict[str, Any]:
        """All of it for JSON; a figure that is no finite number is null. ``gates`` adds their verdicts."""
        plain: dict[str, Any] = {
            "bundle": self.bundle,
            "recipe": self.recipe,
            "warning": self.warning,
            "conditions": _plain(self.conditions),
            "figures": figures_to_dict(self.figures),
            "languages": {lang: figures_to_dict(figures) for lang, figures in self.languages.items()},
            "storage": _plain(self.storage),
            "greedy": {**_plain(self.greedy_summary), "rows": _plain(self.greedy)},
            "layers": _plain(self.layers),
            "worst": _plain(self.worst),
            "kl_histogram": {"log10_edges": list(self.histogram.edges), "counts": list(self.histogram.counts)},
            "max_abs_by_position": _plain(self.max_abs_by_position),
        }
        if gates:
            plain["gates"] = {**_plain(gates), "failed": [_plain(failure) for failure in self.failures(gates)]}
        return plain

    def render(self, console: Console) -> None:
        """Print the report as tables."""
        from helium_onnx.evaluation.tables import render_report

        render_report(self, console)

    def write_html(self, path: str | os.PathLike[str], gates: Gates | None = None) -> None:
        """Write the report as one self-contained page, whole or not at all. Raises HeliumOnnxError."""
        _page().write((self,), Path(path), gates)


@dataclass(frozen=True)
class FidelityComparison:
    """Several bundles beside one reference, on the same windows."""

    reports: tuple[FidelityReport, ...]

    def failures(self, gates: Gates) -> tuple[Failure, ...]:
        """The gates that the bundles do not pass, bundle by bundle."""
        return tuple(failure for report in self.reports for failure in report.failures(gates))

    def to_dict(self, gates: Gates | None = None) -> dict[str, Any]:
        """All reports for JSON, in their order."""
        return {"reports": [report.to_dict(gates) for report in self.reports]}

    def render(self, console: Console) -> None:
        """Print the bundles as one table."""
        from helium_onnx.evaluation.tables import render_comparison

        render_comparison(self, console)

    def write_html(self, path: str | os.PathLike[str], gates: Gates | None = None) -> None:
        """Write the bundles side by side as one self-contained page, whole or not at all. Raises HeliumOnnxError."""
        _page().write(self.reports, Path(path), gates)


def check_page(path: Path) -> None:
    """Raise what ``write_html`` would raise: a package is missing, or no file can be written there."""
    _page().check_target(path)


def _page() -> ModuleType:
    import helium_onnx

    with helium_onnx._needs("eval", "jinja2", "matplotlib"):
        from helium_onnx.evaluation import page
    return page


def figures_to_dict(figures: Figures) -> dict[str, Any]:
    """Figures for JSON: percentiles under their names, the ratio of perplexities beside its logarithm."""
    plain: dict[str, Any] = _plain(figures)
    names = [f"p{percentile:g}" for percentile in PERCENTILES]
    plain["kl_percentiles"] = dict(zip(names, plain["kl_percentiles"], strict=True))
    plain["perplexity_ratio"] = _plain(figures.ratio)
    return plain


def _plain(value: Any) -> Any:
    """Dataclasses as objects, tuples as lists, numbers that are not finite as None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
