"""helium-onnx bench as its users meet it, on cases of a few tokens. No test asks how fast anything was."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny
from command_line import assert_plain, invoke, on_terminal, start

import helium_onnx
from helium_onnx.benchmark import loading
from helium_onnx.benchmark.process import run_apart
from helium_onnx.benchmark.report import BenchReport
from helium_onnx.bundle import Bundle
from helium_onnx.runtimes.native_session import can_run

SMALL = ("--quick", "--prompt", "4,8", "--past", "0,6", "--batch", "1,2", "--rounds", 2, "--threads", 1)


def check_row(row: dict[str, Any], samples: int) -> None:
    """Positive, in order, and consistent with each other."""
    seconds, work, ceiling = row["seconds"], row["work"], row["ceiling"]
    assert 0 < seconds["p10"] <= seconds["median"] <= seconds["p90"]
    assert len(row["samples"]) == samples
    assert min(row["samples"]) <= seconds["p10"]
    assert seconds["p90"] <= max(row["samples"])
    parts = ("weight_bytes", "embedding_bytes", "cache_read_bytes", "cache_write_bytes")
    assert work["total_bytes"] == sum(work[part] for part in parts) > 0
    known = [v for v in (ceiling["memory_seconds"], ceiling["arithmetic_seconds"]) if v is not None]
    assert ceiling["share"] == pytest.approx(max(known) / seconds["median"])


def test_json(sample_bundle: Path) -> None:
    result = invoke("bench", sample_bundle, *SMALL, "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["digest"] == helium_onnx.inspect(sample_bundle)["digest"]
    assert (data["recipe"], data["context_length"], data["conditions"]["threads"]) == ("cpu-int4", 2048, 1)
    assert data["kernels"] == ("native" if can_run(Bundle.open(sample_bundle)) else "onnxruntime")
    assert data["method"]["rounds"] == 2
    assert [row["tokens"] for row in data["prefill"]] == [4, 8]
    assert [(row["past"], row["batch"]) for row in data["decode"]] == [(0, 1), (6, 1), (6, 2)]
    for row in data["prefill"]:
        check_row(row, samples=2)
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"]["median"])
    for row in data["decode"]:
        check_row(row, samples=2 * data["method"]["steps"])
        assert row["tokens_per_second"] == pytest.approx(row["batch"] / row["seconds"]["median"])
    best = data["limits"]["best"]["read_gigabytes_per_second"]
    assert best == max(data["limits"]["read_gigabytes_per_second"]) > 0
    assert len(data["limits"]["read_gigabytes_per_second"]) == 4  # two before the rounds, two after them
    row = data["decode"][0]
    assert row["ceiling"]["memory_seconds"] == pytest.approx(row["work"]["total_bytes"] / best / 1e9)
    warm = data["load"]["warm"]
    assert 0 < warm["loaded_seconds"] < warm["first_token_seconds"]
    assert data["left_out"] == []
    assert "machine: " in result.stderr
    assert "measure: round 2 of 2" in result.stderr
    assert_plain(result.stdout + result.stderr)


@pytest.mark.usefixtures("native_kernels")
@pytest.mark.parametrize(
    ("kernels", "session", "cache_itemsize"),
    [("native", "NativeSession", 2), ("onnxruntime", "OnnxRuntimeSession", 4)],
)
def test_kernels(
    kernels: str, session: str, cache_itemsize: int, sample_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those asked for run the loads and the rounds, and it is their work that is counted and stated."""
    loads = []

    def spy(module: str, *arguments: str) -> Any:
        loads.append(json.loads(arguments[1])["kernels"])
        return run_apart(module, *arguments)

    monkeypatch.setattr(loading, "run_apart", spy)
    result = invoke("bench", sample_bundle, *SMALL, "--kernels", kernels, "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert (data["kernels"], data["session"]) == (kernels, session)
    assert set(loads) == {kernels}
    # Of one token, in 6 layers with 2 key/value heads of 64.
    assert data["decode"][0]["work"]["cache_write_bytes"] == 6 * 2 * 2 * 64 * cache_itemsize


def test_native_kernels_that_cannot_be(sample_bundle_fp32: Path) -> None:
    """Said before anything is measured."""
    result = invoke("bench", sample_bundle_fp32, *SMALL, "--kernels", "native")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(
        "error: native kernels cannot run this\n  found:    a bundle without native graphs\n"
    )


def test_a_report_and_a_page(sample_bundle_fp32: Path, tmp_path: Path) -> None:
    html = tmp_path / "bench.html"
    result = invoke("bench", sample_bundle_fp32, *SMALL, "--prompt", "4,4096", "--html", html, "-q")
    assert (result.exit_code, result.stderr) == (0, "")
    for words in ("prefill, milliseconds", "decode, milliseconds", "left out: prefill of 4096 tokens", "would allow"):
        assert words in result.stdout
    assert_plain(result.stdout)
    assert html.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [entry.name for entry in tmp_path.iterdir()] == ["bench.html"]


def test_on_a_terminal(sample_bundle: Path) -> None:
    code, shown = on_terminal("bench", sample_bundle, *SMALL, "-q")
    assert code == 0
    text = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", shown)
    assert max(map(len, text.splitlines())) <= 80
    assert "of the limit" in text
    assert "…" not in text


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--prompt", "4,x"], 2, "found:    'x'"),
        (["--prompt", ""], 2, "--prompt"),
        (["--past", "-1"], 2, "'-1'"),
        (["--past", "1.5"], 2, "whole numbers with commas between"),
        (["--batch", "0"], 2, "batch is out of range"),
        (["--batch", "1,"], 2, "--batch has no number"),
        (["--prompt", "99999999999999999999"], 2, "--prompt"),
        (["--rounds", "0"], 2, "number of rounds"),
        (["--rounds", "many"], 2, "--rounds"),
        (["--threads", "0"], 2, "number of threads"),
        (["--kernels", "fast"], 2, "expected: auto, native, onnxruntime"),
        (["--prompt", "5000", "--past", "5000"], 2, "no case is left"),
        (["--html", "absent/b.html"], 2, "there is no folder absent"),
        (["--html", "."], 2, "is a folder"),
        (["--provider", "abacus"], 1, "'abacus'"),
        (["--nonsense"], 2, "--nonsense"),
    ],
)
def test_bad_use(args: list[str], code: int, words: str, sample_bundle: Path) -> None:
    result = invoke("bench", sample_bundle, *args)
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_no_bundle(tmp_path: Path, sample_checkpoint: Path) -> None:
    for path, words in ((tmp_path / "absent", "There is no folder"), (sample_checkpoint, "helium-onnx export")):
        result = invoke("bench", path)
        assert (result.exit_code, result.stdout) == (1, "")
        assert words in result.stderr


def test_a_bundle_for_a_gpu(tmp_path: Path) -> None:
    helium_onnx.export(tiny.write_checkpoint(tmp_path / "in"), tmp_path / "out", recipe="cuda-fp16")
    result = invoke("bench", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "found:    a bundle for cuda" in result.stderr
    assert "benchmarks/cuda_run.py" in result.stderr


def test_keywords_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    class Report:
        def to_dict(self) -> dict[str, int]:
            return {"a": 1}

    def bench(path: object, **options: Any) -> Report:
        options.pop("progress")
        asked.append({**options, "path": path})
        return Report()

    monkeypatch.setattr(helium_onnx, "bench", bench)
    args = ("--prompt", "1, 2", "--batch", "3", "--rounds", 4, "--quick", "--threads", 5, "--no-cache")
    more = ("--cache-dir", "d", "--kernels", "onnxruntime", "--json")
    assert json.loads(invoke("bench", "out", *args, *more).stdout) == {"a": 1}
    assert invoke("bench", "out", "--json").exit_code == 0
    nothing = {"prompt": None, "past": None, "batch": None, "rounds": None, "quick": False, "threads": None,
               "provider": "auto", "kernels": "auto", "cache": None, "cache_dir": None,
               "path": Path("out")}  # fmt: skip
    given = {"prompt": [1, 2], "batch": [3], "rounds": 4, "quick": True, "threads": 5, "cache": False,
             "cache_dir": Path("d"), "kernels": "onnxruntime"}  # fmt: skip
    assert asked == [{**nothing, **given}, nothing]


@pytest.mark.parametrize("stage", [b"machine:", b"load:", b"measure:"])
def test_an_interruption_ends_it(stage: bytes, sample_bundle: Path, tmp_path: Path) -> None:
    page = tmp_path / "bench.html"
    with start("bench", sample_bundle, "--rounds", 1000, "--html", page) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(stage):
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        out = process.stdout.read()
    assert process.returncode == 130
    assert b"interrupted" in rest
    assert b"Traceback" not in rest
    assert out == b""
    assert not page.exists()


def test_from_python(sample_bundle: Path) -> None:
    report = helium_onnx.bench(sample_bundle, prompt=(4,), past=(0,), batch=(1,), rounds=1, quick=True)
    assert isinstance(report, BenchReport)
    assert [row.tokens for row in report.prefill] == [4]
    with pytest.raises(helium_onnx.errors.UsageError, match="no such kernels"):
        helium_onnx.bench(sample_bundle, kernels="fast")  # type: ignore[arg-type]
    with pytest.raises(helium_onnx.errors.UsageError, match="prompt is out of range"):
        helium_onnx.bench(sample_bundle, prompt=(0,))
