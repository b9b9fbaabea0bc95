"""The page: self-contained, escaped, whole or absent; and the report on a terminal of 80 columns."""

from __future__ import annotations

import dataclasses
import io
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from helium_onnx.errors import HeliumOnnxError, UsageError
from helium_onnx.evaluation import charts, page, tables
from helium_onnx.evaluation.fidelity import Estimate, Figures
from helium_onnx.evaluation.gates import Gates
from helium_onnx.evaluation.greedy import GreedyRow
from helium_onnx.evaluation.layers import LayerRow
from helium_onnx.evaluation.report import (
    Conditions,
    FidelityComparison,
    FidelityReport,
    Histogram,
    Storage,
    WorstPosition,
)

EVIL = '<script>alert(1)</script>--><img src=x onerror=y>\x1b[31m & "q" $a_b$ {{ 7*7 }}'
FIGURES = Figures(
    windows=3, positions=1234, reference_perplexity=10.2, perplexity=10.5, ln_ratio=Estimate(0.0234, 0.0015),
    kl=Estimate(0.0325, 0.0016), kl_percentiles=(0.02, 0.075, 0.2, 0.44), kl_max=1.24,
    same_top1=Estimate(0.909, 0.0035), lost=694, gained=556, max_abs=5.06, not_finite=0,
)  # fmt: skip
REPORT = FidelityReport(
    bundle="out/int4",
    recipe="cpu-int4",
    warning=None,
    conditions=Conditions("ckpt", "texts.jsonl", 3, 1237, 1024, 32, 64, 2, "a machine", {"onnxruntime": "1.31.1"}),
    figures=FIGURES,
    languages={"en": FIGURES, "fr": dataclasses.replace(FIGURES, ln_ratio=Estimate(0.01, math.nan))},
    max_abs_by_position=tuple(float(i % 7 + 1) for i in range(300)),
    histogram=Histogram(tuple(i / 4 for i in range(-64, 9)), tuple(i % 5 for i in range(72))),
    worst=(WorstPosition("en", 4, 17, 1.24, 3.2, "the text before", " true", " theirs", " ours"),),
    greedy=(GreedyRow("en", 1, 64, 64), GreedyRow(None, 2, 64, 11, 5, 6, 0.25)),
    layers=tuple(LayerRow(i, 1e-4 * (i + 2), None if i < 0 else 2e-4) for i in range(-1, 6)),
    storage=Storage(6_270_000, 5_670_000, {"all": 5.32}),
)
#: A bundle that equals the reference, and one that is broken.
EXACT = dataclasses.replace(
    REPORT,
    recipe="cpu-fp32",
    figures=dataclasses.replace(
        FIGURES, kl=Estimate(0.0, 0.0), kl_percentiles=(0.0,) * 4, kl_max=0.0, max_abs=0.0, ln_ratio=Estimate(0.0, 0.0),
        same_top1=Estimate(1.0, 0.0), lost=0, gained=0,
    ),
    max_abs_by_position=(0.0,) * 300,
    layers=tuple(LayerRow(i, 0.0, None if i < 0 else 0.0) for i in range(-1, 6)),
    languages={},
)  # fmt: skip
NAN = Estimate(math.nan, math.nan)
BROKEN = dataclasses.replace(
    REPORT,
    recipe="broken",
    figures=dataclasses.replace(
        FIGURES, kl=NAN, ln_ratio=NAN, same_top1=NAN, perplexity=math.nan, kl_percentiles=(math.nan,) * 4,
        kl_max=math.nan, max_abs=math.inf, not_finite=1234,
    ),
    histogram=Histogram(REPORT.histogram.edges, (0,) * 72),
    max_abs_by_position=(math.nan,) * 300,
    layers=tuple(LayerRow(i, math.nan, math.inf) for i in range(-1, 6)),
    languages={"en": dataclasses.replace(FIGURES, ln_ratio=NAN)},
)  # fmt: skip


class Reader(HTMLParser):
    """Collects tags and attributes; void elements need no end."""

    VOID = frozenset({"meta", "br", "img", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


@pytest.mark.parametrize("reports", [[REPORT], [EXACT], [BROKEN], [EXACT, REPORT, BROKEN], [REPORT] * 9])
def test_it_is_whole_and_refers_to_nothing_outside(reports: list[FidelityReport]) -> None:
    text = page.render(reports)
    reader = read(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in reader.tags}
    for _, attributes in reader.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src", "xlink:href"):
                assert (value or "").startswith("#"), value
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= set(re.findall(r"url\((#[^)]*)\)", text))
    assert "@import" not in text
    assert len(re.findall("<svg", text)) == sum(tag == "figure" for tag, _ in reader.tags) >= 3


def test_what_stands_in_it() -> None:
    text = read(page.render([REPORT])).text
    for word in ("10.5000", "0.0234", "± 0.0015", "90.90 %", "0.440", "1.24", "694", "5.06", "5.32", "6.27 MB",
                 "the text before", "11 of 64", "none in 64", "embedding", "texts.jsonl", "a machine", "1.31.1",
                 "1,237 tokens"):  # fmt: skip
        assert word in text, word
    several = read(page.render([EXACT, REPORT])).text
    assert "Size against loss" in several
    assert "Size against loss" not in text


def test_words_of_others_are_text_and_nothing_else() -> None:
    evil = dataclasses.replace(
        REPORT,
        bundle=EVIL,
        recipe=EVIL,
        warning=EVIL,
        conditions=dataclasses.replace(REPORT.conditions, against=EVIL, text=EVIL, machine=EVIL),
        languages={EVIL: FIGURES},
        worst=(WorstPosition(EVIL, 1, 1, 1.0, 1.0, EVIL, EVIL, EVIL, EVIL),),
        greedy=(GreedyRow(EVIL, 1, 64, 64),),
    )
    for reports in ([evil], [evil, REPORT]):
        text = page.render(reports, Gates(max_kl=1e-9))
        reader = read(text)
        assert not {"script", "img"} & {tag for tag, _ in reader.tags}
        assert "\x1b" not in text
        assert "{{ 7*7 }}" in reader.text
        assert "49" not in re.findall(r"\{\{.*?\}\}", reader.text)
        for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
            ET.fromstring(svg)


@pytest.mark.parametrize("label", ["$", "$x$", r"a\b", "a_b^c", "表", "", "x" * 300, "$\\frac{", "%s", "a\nb"])
def test_a_chart_takes_any_label(label: str) -> None:
    odd = dataclasses.replace(REPORT, recipe=label, languages={label: FIGURES})
    for reports in ([odd], [odd, REPORT]):
        for draw in (
            charts.kl_distribution,
            charts.loss_per_layer,
            charts.loss_by_language,
            charts.max_abs_by_position,
        ):
            ET.fromstring(draw(reports))
        ET.fromstring(charts.size_against_loss(reports, measure="kl"))


def test_equal_reports_give_equal_pages() -> None:
    assert page.render([REPORT, EXACT]) == page.render([REPORT, EXACT])


def test_bundles_of_one_recipe_are_told_apart() -> None:
    other = dataclasses.replace(REPORT, bundle="other/int4")
    assert charts.labels([REPORT, other, EXACT]) == ["out/int4", "other/int4", "cpu-fp32"]


def test_verdicts() -> None:
    assert "bar is reached" not in read(page.render([REPORT])).text
    assert "Every bar is reached" in read(page.render([REPORT], Gates(max_kl=0.1))).text
    failed = read(page.render([REPORT, EXACT], Gates(max_kl=0.01))).text
    assert "Not every bar is reached" in failed
    assert "out/int4: the mean KL divergence is 0.0325, not at most 0.01" in failed


def test_writing_replaces_the_page_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")
    REPORT.write_html(path)
    assert path.read_text(encoding="utf-8") == page.render([REPORT])
    FidelityComparison((REPORT, EXACT)).write_html(str(path))
    assert path.read_text(encoding="utf-8") == page.render([REPORT, EXACT])

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        REPORT.write_html(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text(encoding="utf-8") == page.render([REPORT, EXACT])


def test_places_where_no_page_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        page.check_target(tmp_path)
    with pytest.raises(UsageError, match="there is no folder"):
        page.check_target(tmp_path / "absent" / "report.html")
    page.check_target(tmp_path / "report.html")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(HeliumOnnxError, match="cannot be written") as caught:
        REPORT.write_html(tmp_path / "report.html")
    assert "No space left" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# On a terminal


@pytest.mark.parametrize("report", [REPORT, EXACT, BROKEN, FidelityComparison((EXACT, REPORT, BROKEN))])
def test_render_fits_80_columns(report: FidelityReport | FidelityComparison) -> None:
    stream = io.StringIO()
    report.render(Console(file=stream, width=80))
    assert max(map(len, stream.getvalue().splitlines())) <= 80


def test_render_says_it_all() -> None:
    stream = io.StringIO()
    dataclasses.replace(REPORT, warning="files [differ]\x1b").render(Console(file=stream, width=120))
    text = stream.getvalue()
    for word in ("10.5000", "0.0234", "90.90 %", "files [differ]␛", "none in 64", "embedding", "1.31.1", "fr"):
        assert word in text, word
    stream = io.StringIO()
    FidelityComparison((EXACT, REPORT)).render(Console(file=stream, width=120))
    assert re.search(r"cpu-int4.*6\.3.*5\.32.*0\.0234.*0\.0325", stream.getvalue())


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.03249, "0.0325"), (10.28, "10.3"), (123.4, "123"), (91487.2, "91487"), (3.19e-12, "3.19e-12"), (0.0, "0"),
     (math.nan, "n/a"), (math.inf, "n/a"), (None, "n/a"), (-0.5, "-0.500"), (1e9, "1.00e+09"), (0.9999, "1.000")],
)  # fmt: skip
def test_figures(value: float | None, text: str) -> None:
    assert tables.figure(value) == text


def test_a_share_is_100_only_where_it_is() -> None:
    assert [tables.share(x) for x in (1.0, 0.99999, 0.935, 0.0, math.nan)] == [
        "100.00 %", "> 99.99 %", "93.50 %", "0.00 %", "n/a",
    ]  # fmt: skip


def test_greedy_summary() -> None:
    def summary(*equal: int | None) -> tuple[int, float, float | None]:
        rows = [GreedyRow("en", 1, 64, 64) if e is None else GreedyRow("en", 1, 64, e, 1, 2, 0.1) for e in equal]
        s = dataclasses.replace(REPORT, greedy=tuple(rows)).greedy_summary
        return s.equal_texts, s.mean_equal, s.median_equal

    assert summary(3, 1, 2) == (0, 2.0, 2.0)
    assert summary(3, 1, None, 2) == (1, 17.5, 2.5)
    assert summary(3, None) == (1, 33.5, None)
    assert summary(None, None, 5) == (2, 133 / 3, None)
    assert summary(None) == (1, 64.0, None)


def test_many_bundles_are_numbered_and_the_lines_are_those_of_the_first(tmp_path: Path) -> None:
    many = tuple(dataclasses.replace(REPORT, bundle=f"out/b{i}") for i in range(charts.MOST + 2))
    assert charts.labels(many) == [f"b{i}" for i in range(charts.MOST + 2)]
    page = tmp_path / "page.html"
    FidelityComparison(many).write_html(page)
    text = page.read_text(encoding="utf-8")
    for sentence in (f"The first {charts.MOST} of {charts.MOST + 2} bundles.", "places in the table, from the left."):
        assert sentence in text
    assert f"The first {charts.MOST}" not in rendered(many[: charts.MOST], tmp_path)


def rendered(reports: tuple[FidelityReport, ...], folder: Path) -> str:
    FidelityComparison(reports).write_html(folder / "few.html")
    return (folder / "few.html").read_text(encoding="utf-8")
