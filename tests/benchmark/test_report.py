"""Reports: ceilings, percentiles, JSON, the terminal's tables and the page."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import reports
from rich.console import Console

from helium_onnx.benchmark import charts, page, tables
from helium_onnx.benchmark.machine import Limits
from helium_onnx.benchmark.report import BenchReport, Ceiling, Quantiles, best, check_page
from helium_onnx.benchmark.traffic import Work
from helium_onnx.errors import HeliumOnnxError, UsageError

REPORT = reports.report()
WORK = Work(1_000_000_000, 0, 500_000_000, 500_000_000, 4 * 10**9, 10**8)


def shown(report: BenchReport, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, color_system=None)
    report.render(console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_quantiles_are_in_order() -> None:
    q = Quantiles.of([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (q.p10, q.median, q.p90) == (1.4, 3.0, 4.6)
    assert Quantiles.of([2.0]) == Quantiles(2.0, 2.0, 2.0)


def test_a_ceiling_by_hand() -> None:
    limits = Limits("x", 1, 1, (40.0, 50.0, 45.0), (1000.0,), (100.0, 99.0))
    ceiling = Ceiling.of(WORK, limits, measured_seconds=0.08)
    assert ceiling.memory_seconds == 2e9 / 50e9
    assert ceiling.arithmetic_seconds == pytest.approx(4e9 / 1000e9 + 1e8 / 100e9)
    assert (ceiling.binds, ceiling.share) == ("memory", 0.5)
    much = dataclasses.replace(WORK, fp32_operations=10**10)
    ceiling = Ceiling.of(much, limits, measured_seconds=1.04)
    assert (ceiling.binds, ceiling.share) == ("arithmetic", pytest.approx(0.1))


def test_a_limit_that_was_not_measured() -> None:
    without = Limits("numpy", 1, 1, (50.0,), (), (100.0,))
    ceiling = Ceiling.of(WORK, without, measured_seconds=0.08)
    assert ceiling == Ceiling(2e9 / 50e9, None, None, 0.5)
    floats = Ceiling.of(dataclasses.replace(WORK, int8_operations=0), without, measured_seconds=0.08)
    assert floats.arithmetic_seconds == 1e8 / 100e9  # no integers are multiplied, so none need a rate
    assert Ceiling.of(WORK, None, 0.08) == Ceiling(None, None, None, None)
    assert best(None) == (None, None, None)


def test_json() -> None:
    data = json.loads(json.dumps(REPORT.to_dict(), allow_nan=False))
    assert set(data) == {
        "bundle", "digest", "recipe", "provider", "kernels", "session", "context_length", "conditions", "method",
        "limits", "fits_in_caches", "load", "prefill", "decode", "left_out",
    }  # fmt: skip
    assert (data["kernels"], data["session"]) == ("onnxruntime", "OnnxRuntimeSession")
    assert data["limits"]["best"] == {
        "read_gigabytes_per_second": 50.0,
        "int8_gigaops": 1000.0,
        "fp32_gigaflops": 100.0,
    }
    assert data["limits"]["read_gigabytes_per_second"] == [49.0, 50.0]
    row = data["decode"][0]
    assert (row["past"], row["batch"], len(row["samples"])) == (0, 1, 3)
    assert row["work"]["total_bytes"] == REPORT.decode[0].work.total_bytes
    assert row["tokens_per_second"] == pytest.approx(1 / 0.031)
    assert data["decode"][2]["tokens_per_second"] == pytest.approx(16 / 1.2)
    assert row["ceiling"]["binds"] == "memory"
    assert data["load"]["cold"]["first_token_seconds"] == 20.1
    assert data["conditions"]["instruction_sets"] == ["avx2", "avx512_vnni"]
    assert json.loads(json.dumps(reports.report(None, cold=None).to_dict()))["limits"] is None


def test_the_tables_fit_80_columns_and_nothing_is_cut() -> None:
    text = shown(REPORT)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for words in ("out/a [red]bundle", "reads 50.0 GB/s", "int8 1,000 Gop/s", "of the limit", "left out: decode at"):
        assert words in text
    assert "2 threads, onnxruntime kernels (OnnxRuntimeSession)" in " ".join(text.split())
    assert "One round to warm up" in text
    assert "Processor [bold] 9000" in " ".join(text.split())


def test_the_sentence() -> None:
    assert tables.sentence(REPORT.decode[0]) == (
        "decode at past 0: 31.0 ms a token; memory would allow 25.0 (81 %), arithmetic 5.00 (16 %); memory binds"
    )
    assert tables.sentence(REPORT.decode[2]).startswith("decode at past 512, batch 16: 1,200 ms a step; memory would")
    assert "; arithmetic binds" in tables.sentence(REPORT.prefill[1])
    numpy = dataclasses.replace(reports.LIMITS, int8_gigaops=())
    assert tables.sentence(reports.decode(0, 1, 0.05, numpy)) == (
        "decode at past 0: 50.0 ms a token; memory would allow 25.0 (50 %)"
    )
    assert "int8 not measured" in tables.rates(reports.report(numpy))
    assert "computes elsewhere" in tables.rates(reports.report(None, provider="cuda"))


@pytest.mark.parametrize(
    ("value", "text"), [(0.000123, "0.12"), (0.0312, "31.2"), (0.00999, "9.99"), (1.04, "1,040"), (None, "-")]
)
def test_milliseconds(value: float | None, text: str) -> None:
    assert tables.milliseconds(value) == text


def test_notes() -> None:
    assert [note.split(":")[0] for note in tables.notes(REPORT)] == ["left out"]
    conditions = dataclasses.replace(reports.CONDITIONS, load_average=(3.0, 1.0, 1.0), cache_bytes=2_000_000_000)
    disturbed = dataclasses.replace(reports.LIMITS, read_gigabytes_per_second=(20.0, 50.0))
    warm = dataclasses.replace(reports.LOAD, cached_share=0.5)
    found = tables.notes(reports.report(disturbed, conditions=conditions, cold=warm, left_out=()))
    assert [re.search(words, note) is not None for words, note in zip(
        ("may exceed 100 %", "50 % of the bundle stayed", "moved between 20.0 and 50.0", "load average 3.00"),
        found, strict=True,
    )] == [True] * 4  # fmt: skip


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    path = tmp_path / "bench.html"
    REPORT.write_html(path)
    text = path.read_text(encoding="utf-8")
    assert text == page.render(REPORT)
    assert text.startswith("<!DOCTYPE html>")
    assert "<script" not in text
    assert "@import" not in text
    assert not re.search(r'(src|href)="(?!#)', text)
    kernels = "onnxruntime kernels (OnnxRuntimeSession)"
    for words in ("decode at past 0: 31.0 ms a token", "abababab", "1.3 GB", "left out: decode at past 8192", kernels):
        assert words in text
    assert text.count("<svg") == 5
    assert [entry.name for entry in tmp_path.iterdir()] == ["bench.html"]


@pytest.mark.parametrize(
    "report",
    [
        REPORT,
        reports.report(None, cold=None, left_out=()),
        reports.report(dataclasses.replace(reports.LIMITS, int8_gigaops=())),
        reports.report(prefill=()),
        reports.report(decode=()),
    ],
)
def test_a_report_of_any_shape(report: BenchReport) -> None:
    text = page.render(report)
    assert "None" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL).replace("none", "")
    assert max(map(len, shown(report).splitlines())) <= 80
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("draw", [charts.decode, charts.traffic, charts.steps, charts.prefill, charts.loads])
def test_charts_are_whole(draw: object) -> None:
    for report in (REPORT, reports.report(None)):
        root = ET.fromstring(draw(report))  # type: ignore[operator]
        assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_where_no_page_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        check_page(tmp_path)
    with pytest.raises(HeliumOnnxError, match="there is no folder"):
        REPORT.write_html(tmp_path / "absent" / "bench.html")


def test_in_caches_or_not() -> None:
    assert not REPORT.fits_in_caches
    assert reports.report(conditions=dataclasses.replace(reports.CONDITIONS, cache_bytes=10**9)).fits_in_caches
    assert not reports.report(conditions=dataclasses.replace(reports.CONDITIONS, cache_bytes=None)).fits_in_caches
    assert math.isfinite(REPORT.prefill[0].tokens_per_second)
