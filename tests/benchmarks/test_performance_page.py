"""docs/performance.md and its charts follow from the results, and say what is not measured."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import peer_charts
import performance_page
import performance_tables
import pytest

ROOT = Path(__file__).parents[2]
GIVEN = {"cpu": "A <Processor> & more", "cores": 2, "threads": 2, "date": "2026-01-02", "onnxruntime": "1"}
BUNDLE = {"name": "b", "recipe": "cpu-int4", "digest": "d", "bytes": 1_000_000_000}
EMPTY: dict[str, Any] = {"peers": {}, "settings": {}, "operators": {}}


def figures(prefill: float, decode: float) -> dict[str, Any]:
    quiet = {"idle_workers_cores": 0.0, "other_processes_cores": 0.02}
    return {"512": {"prefill_tokens_per_second": prefill, "decode_ms_per_token": decode, **quiet}}


def peers() -> dict[str, Any]:
    rounds = [{"helium-onnx 4 bits/32": figures(200, 30), "peer": figures(100, 40 + turn)} for turn in range(3)]
    memory = {"private": 100.0, "resident": 1600.0}
    run = {"load_seconds": 0.5, "first_token_seconds": 1.25, "loaded_mb": memory, "generated_mb": memory}
    return {
        "speed": {"prompts": [512], "new": 24, "groups": [rounds]},
        "speed_conditions": GIVEN,
        "once": {"helium-onnx 4 bits/32": {"first": run, "runs": [run]}},
    }


def test_the_page_in_the_checkout_is_what_the_results_say() -> None:
    page = performance_page.PAGE
    expected = performance_page.refreshed(page.read_text("utf-8"), performance_page.read(performance_page.RESULTS))
    assert page.read_text("utf-8") == expected, "python benchmarks/performance_page.py writes it anew"


def test_every_section_is_on_the_page_once() -> None:
    text = performance_page.PAGE.read_text("utf-8")
    names = [name for _, name, _, _ in performance_page._SECTION.findall(text)]
    assert sorted(names) == sorted(performance_page.SECTIONS)
    assert text.count("<!-- generated:") == text.count("<!-- end -->") == len(names)


def test_what_is_not_measured_is_named_with_its_command(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- generated: settings-chunks -->\nold 5\n<!-- end -->\nb\n")
    files = performance_page.written(page, EMPTY)
    words = "Not measured yet: `python benchmarks/settings.py`."
    assert files.pop(page) == f"a\n<!-- generated: settings-chunks -->\n\n{words}\n\n<!-- end -->\nb\n"
    assert set(files.values()) == {None}  # no chart


def test_writing_it_again_changes_nothing() -> None:
    results = {**EMPTY, "peers": peers()}
    once = performance_page.refreshed("<!-- generated: peers-speed -->\n<!-- end -->\n", results)
    assert "| helium-onnx 4 bits/32 | peer |" in once and "2.00 x" in once
    assert performance_page.refreshed(once, results) == once


def test_an_unknown_section_is_refused() -> None:
    with pytest.raises(SystemExit, match="no section is called nonsense"):
        performance_page.refreshed("<!-- generated: nonsense -->\n<!-- end -->", EMPTY)


def test_charts_are_those_of_the_parts_that_there_are() -> None:
    assert [chart.file for chart in peer_charts.charts(peers())] == list(performance_page.CHART_FILES)
    assert peer_charts.charts({"check": {}}) == []


def test_bars_stand_in_the_order_of_what_is_better() -> None:
    prefill, decode, load, _ = peer_charts.charts(peers())
    assert [bar.words for bar in prefill.bars] == ["200", "100"]
    assert [(bar.name, bar.words, bar.ends) for bar in decode.bars] == [
        ("helium-onnx 4 bits/32", "30.0", (30.0, 30.0)),
        ("peer", "41.0", (40.0, 42.0)),
    ]
    assert load.bars[0].words == "0.50 + 0.75"


def test_a_chart_is_a_file_of_its_own_that_knows_dark_pages() -> None:
    for chart in peer_charts.charts(peers()):
        svg = peer_charts.draw(chart)
        element = ET.fromstring(svg)
        assert float(element.attrib["width"]) > 400 and float(element.attrib["height"]) > 90
        assert "prefers-color-scheme: dark" in svg
        for colour in (peer_charts._INK, peer_charts._PAPER, peer_charts._FAINT, peer_charts._OWN):
            assert f": {colour.lower()}" in svg.partition("</style>")[2], "a rule that meets nothing"
        assert svg == peer_charts.draw(chart), "equal results give equal files"


def test_a_part_without_conditions_says_so() -> None:
    assert "were not recorded" in peer_charts.charts(peers())[2].conditions


def setting(threads: int, pinned: bool) -> dict[str, Any]:
    return {"threads": threads, "pinned": pinned, "spin": True, "context": 99, "chunk": 512}


def threads_part(pinned_least: float) -> dict[str, Any]:
    def row(least: float) -> dict[str, Any]:
        keys = (performance_tables.PREFILL, performance_tables.DECODE, performance_tables.CPU)
        ratio = {"median": 1.5, "least": least, "most": 2.0}
        return {
            "median": {**dict.fromkeys(keys, 10.0), "afterwards_cpu_ms": 3.0},
            "ratio": dict.fromkeys(keys, ratio),
        }

    quiet = {"other_processes_cores": 0.1}
    return {
        "bundle": BUNDLE, "conditions": GIVEN, "prompt": 512, "past": 512, "default": "free",
        "read_gigabytes_per_second": [40.0, 41.0], "settings": {"free": setting(2, False), "bound": setting(2, True)},
        "summary": {"free": row(1.0), "bound": row(pinned_least)}, "rounds": [{"free": quiet, "bound": quiet}],
    }  # fmt: skip


def test_a_setting_is_called_faster_only_where_every_round_says_so() -> None:
    assert "each of 1 rounds: `bound` prefills 1.50 x" in performance_tables.threads(threads_part(1.2))
    assert "No setting prefills faster" in performance_tables.threads(threads_part(0.9))
    assert "40.5 GB/s" in performance_tables.threads(threads_part(0.9))


def test_a_disturbed_run_has_no_verdict() -> None:
    part = threads_part(1.2)
    part["rounds"] = [{"free": {"other_processes_cores": 0.9}}]
    text = performance_tables.threads(part)
    assert "x as fast" not in text and "**Others disturbed" in text


def test_operators_of_little_time_share_a_line() -> None:
    rows = [
        {"operator": "MatMulNBits", "nodes": 3, "ms": 10.0, "share": 0.994, "bytes": 200_000_000},
        {"operator": "Cast", "nodes": 2, "ms": 0.04, "share": 0.004, "bytes": 0},
        {"operator": "Sub", "nodes": 1, "ms": 0.02, "share": 0.002, "bytes": 0},
    ]
    graph = {
        "ms": 10.0, "profiled_ms": 11.0, "nodes": 6, "weight_bytes": 200_000_000, "total_bytes": 200_000_000,
        "int8_operations": 10**10, "operators": rows,
    }  # fmt: skip
    results = {
        "bundle": BUNDLE, "conditions": GIVEN, "prompt": 512, "past": 512, "rounds": 2, "int8_gigaops": [2000.0],
        "read_gigabytes_per_second": [40.0], "other_processes_cores": [0.1],
        "decode": {"before": graph, "after": graph}, "prefill": {"before": graph, "after": graph},
    }  # fmt: skip
    text = performance_tables.operators(results, "decode")
    assert "| ours | 6 | 10.00 | 11.00 | 200 | 20.0 | 50 % |" in text
    assert "| 2 others | 3 | 0.060 | 0.6 % |  |" in text and "`Cast`" not in text
    assert "| 1000 | 50 % |" in performance_tables.operators(results, "prefill")


def test_the_results_in_the_checkout_are_those_of_the_big_bundle() -> None:
    for name in ("settings", "operators"):
        path = ROOT / f"benchmarks/results/{name}.json"
        if path.exists():
            parts = json.loads(path.read_text("utf-8"))
            parts = parts.values() if name == "settings" else [parts]
            assert all(part["bundle"]["bytes"] > 1e9 for part in parts), f"{path}: numbers of a small trial"
