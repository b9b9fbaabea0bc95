"""How our charts look: colours, letters, axes, and the text of one SVG element.

Letters are drawn as paths, so that a page looks and prints the same where a font is missing.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helium_onnx.terminal import visible

#: Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), which colour-blind readers can tell apart, and print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":", "-.")
_SIZE = (4.4, 2.9)  # inches: letters of 9 points stay readable on a phone and in two columns of A4
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "path",
    "svg.hashsalt": "helium-onnx",  # equal reports give equal pages
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def new_axes() -> tuple[Figure, Axes]:
    """An empty chart in the style of our pages."""
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=_SIZE, layout="constrained")
        return figure, figure.add_subplot()


def legend(figure: Figure, axes: Axes) -> None:
    """Above the plot, where it hides nothing."""
    handles, names = axes.get_legend_handles_labels()
    if handles:
        longest = max(map(len, names))
        columns = min(len(names), 1 if longest > 24 else 2 if longest > 16 else 3)
        with matplotlib.rc_context(_SETTINGS):
            figure.legend(handles, names, loc="outside upper left", ncols=columns, handlelength=2.2)


def wide_log(axes: Axes) -> None:
    """At least two decades, or a logarithmic axis has no label at all."""
    low, high = axes.get_ylim()
    high *= 1.5  # room for a label at the highest point
    while high / low < 100:
        low, high = low / 1.3, high * 1.3
    axes.set_ylim(low, high)


def say(axes: Axes, words: str) -> None:
    """Words in the place of a curve."""
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color="#666666")
    axes.set_yticks([])


def positive(value: float) -> bool:
    """Whether a logarithmic axis can show ``value``."""
    return math.isfinite(value) and value > 0


def colour(index: int) -> str:
    """Of the curve ``index``."""
    return COLOURS[index % len(COLOURS)]


def dash(index: int) -> str:
    """Of the curve ``index``: another where the colours begin again."""
    return _DASHES[index // len(COLOURS) % len(_DASHES)]


def label_text(label: str) -> str:
    """A label as it stands: no formula between dollars, and not longer than a chart bears."""
    short = label if len(label) <= 40 else f"...{label[-37:]}"
    return visible(" ".join(short.split())).replace("\\", "/").replace("$", r"\$")


def as_svg(figure: Figure) -> str:
    """The chart as one SVG element that is as wide as its place."""
    out = io.StringIO()
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font lacks is drawn as a box, and that is all
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    svg = text[text.index("<svg") :]
    # Its box says how large it is; the page says how wide it is shown.
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return re.sub(r"<metadata>.*?</metadata>", "", f"{head}>{rest}", flags=re.DOTALL)
