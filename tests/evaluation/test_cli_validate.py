"""validate --text, validate --golden and compare as their users meet them: options, exit codes, Ctrl-C."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import helium_onnx
from helium_onnx import cli

VALID = Path(__file__).parents[2] / "benchmarks" / "data" / "valid.jsonl"
SMALL = ("--limit", 2, "--max-tokens", 96, "--max-new-tokens", 4)


def invoke(*args: object) -> Result:
    return CliRunner().invoke(cli.app, [str(arg) for arg in args])


def test_report_page_and_json(sample_bundle: Path, sample_checkpoint: Path, tmp_path: Path) -> None:
    html = tmp_path / "report.html"
    args = ("validate", sample_bundle, "--against", sample_checkpoint, "--text", VALID, *SMALL)
    plain = invoke(*args, "--html", html)
    assert plain.exit_code == 0, plain.stderr
    assert "ln(perplexity ratio)" in plain.stdout
    assert f"compare {sample_bundle.name}: 100 %" in plain.stderr
    assert html.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    found = invoke(*args, "--json", "--quiet", "--max-kl", 0.5, "--min-top1", "50%", "--max-ppl-ratio", 2)
    assert (found.exit_code, found.stderr) == (0, "")
    report = json.loads(found.stdout)
    assert report["conditions"]["windows"] == 2
    assert report["conditions"]["tokens"] == 192
    assert report["gates"] == {"max_kl": 0.5, "min_top1": 0.5, "max_ppl_ratio": 2.0, "failed": []}
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        (("--max-kl", "1e-6"), ["mean KL divergence", "not at most 1e-06", "--max-kl"]),
        (("--min-top1", "99.99%"), ["equal top tokens", "not at least 0.9999", "--min-top1"]),
        (("--max-ppl-ratio", "0.5"), ["ratio of perplexities", "not at most 0.5", "--max-ppl-ratio"]),
    ],
)
def test_a_gate_that_fails_is_exit_code_1(
    gate: tuple[str, str], words: list[str], sample_bundle: Path, sample_checkpoint: Path
) -> None:
    args = ("validate", sample_bundle, "--against", sample_checkpoint, "--text", VALID, *SMALL, "--json", "--quiet")
    result = invoke(*args, *gate)
    assert result.exit_code == 1
    assert all(word in result.stderr for word in words), result.stderr
    (failed,) = json.loads(result.stdout)["gates"]["failed"]
    assert failed["gate"] == gate[0][2:].replace("-", "_")


def test_compare(sample_bundle: Path, sample_bundle_fp32: Path, sample_checkpoint: Path, tmp_path: Path) -> None:
    html = tmp_path / "report.html"
    args = ("compare", sample_bundle, sample_bundle_fp32, "--against", sample_checkpoint, "--text", VALID, *SMALL)
    result = invoke(*args, "--html", html, "--max-kl", 1e-6)
    assert result.exit_code == 1
    assert "cpu-int4" in result.stdout
    assert "cpu-fp32" in result.stdout
    assert f"{sample_bundle}: the mean KL" in result.stderr
    assert f"{sample_bundle_fp32}: the mean KL" not in result.stderr
    assert "Fidelity of 2 bundles" in html.read_text(encoding="utf-8")
    found = invoke(*args, "--json", "--quiet")
    assert found.exit_code == 0
    assert [report["recipe"] for report in json.loads(found.stdout)["reports"]] == ["cpu-int4", "cpu-fp32"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--html", "r.html"), "--html says nothing without --text"),
        (("--limit", "100"), "--limit says nothing without --text"),
        (("--max-tokens", "64"), "--max-tokens says nothing without --text"),
        (("--max-kl", "0.1"), "--max-kl says nothing without --text"),
        (("--min-top1", "0.9"), "--min-top1 says nothing without --text"),
        (("--max-ppl-ratio", "1.1"), "--max-ppl-ratio says nothing without --text"),
        (("--text", "t.jsonl", "--prompt", "a"), "exclude each other"),
        (("--text", "t.jsonl", "--min-top1", "93.5"), "write 93.5% for a percentage"),
        (("--text", "t.jsonl", "--min-top1", "high"), "'high' is no rate"),
        (("--text", "t.jsonl", "--max-kl", "-1"), "max_kl is out of range"),
        (("--text", "t.jsonl", "--max-kl", "nan"), "max_kl is out of range"),
        (("--text", "t.jsonl", "--max-ppl-ratio", "0"), "max_ppl_ratio is out of range"),
        (("--text", "t.jsonl", "--html", "absent/r.html"), "there is no folder absent"),
        (("--text", "t.jsonl", "--html", "."), "is a folder"),
        (("--golden",), "--golden takes no --against"),
    ],
)
def test_combinations_that_mean_nothing(args: tuple[str, ...], words: str) -> None:
    result = invoke("validate", "out", "--against", "ckpt", *args)
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.parametrize("args", [("--text", "t.jsonl"), ()])
def test_against_is_required(args: tuple[str, ...]) -> None:
    result = invoke("validate", "out", *args)
    assert result.exit_code == 2
    assert "--against" in result.stderr
    assert invoke("compare", "out", "--text", "t.jsonl").exit_code == 2
    assert invoke("compare", "--against", "ckpt", "--text", "t.jsonl").exit_code == 2


def test_golden(sample_bundle: Path) -> None:
    result = invoke("validate", sample_bundle, "--golden", "--quiet")
    assert result.exit_code == 2
    assert "kyutai/helium-1-preview-2b" in result.stderr
    assert "vocab_size 6000" in result.stderr
    assert "--golden takes no --text" in invoke("validate", "out", "--golden", "--text", "t.jsonl").stderr
    assert "--golden takes no --prompt" in invoke("validate", "out", "--golden", "--prompt", "a").stderr


def test_texts_that_cannot_be_used(sample_bundle: Path, sample_checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "texts.jsonl"
    for data, words in ((b"", "is empty"), (b"{}\n", 'has no "text"'), (b'{"text": "a"}', "no text is long enough")):
        text.write_bytes(data)
        result = invoke("validate", sample_bundle, "--against", sample_checkpoint, "--text", text)
        assert result.exit_code == 1
        assert words in result.stderr
        assert "Traceback" not in result.stderr + result.stdout
    result = invoke("compare", sample_bundle, "--against", sample_checkpoint, "--text", tmp_path)
    assert result.exit_code == 1
    assert "is a folder" in result.stderr


def test_keywords_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    class Report:
        def render(self, console: Any) -> None:
            console.print("a report")

        def failures(self, gates: object) -> tuple[()]:
            assert not gates
            return ()

    def take(path: object, **options: Any) -> Report:
        asked.append({**options, "path": path})
        options["progress"]  # always there
        return Report()

    monkeypatch.setattr(helium_onnx, "validate", take)
    monkeypatch.setattr(helium_onnx, "compare", take)
    options = ("--against", "ckpt", "--text", "t", "--limit", 0, "--max-tokens", 9, "--max-new-tokens", 3)
    options = (*options, "--provider", "cpu", "--adapter", "lora", "--adapter", "more")
    assert invoke("validate", "out", *options).stdout == "a report\n"
    assert invoke("compare", "a", "b", *options).stdout == "a report\n"
    assert invoke("compare", "a", "--against", "ckpt", "--text", "t").exit_code == 0
    wanted = {
        "against": "ckpt", "text": Path("t"), "limit": None, "max_tokens": 9, "max_new_tokens": 3, "provider": "cpu",
        "adapter": ["lora", "more"],
    }  # fmt: skip
    assert [{k: v for k, v in a.items() if k != "progress"} for a in asked] == [
        {"path": Path("out"), **wanted},
        {"path": [Path("a"), Path("b")], **wanted},
        {"path": [Path("a")], **wanted, "limit": 100, "max_tokens": None, "max_new_tokens": 64, "provider": "auto",
         "adapter": None},
    ]  # fmt: skip


def test_defaults_of_compare_are_those_of_the_function() -> None:
    ours = inspect.signature(cli.compare).parameters
    theirs = inspect.signature(helium_onnx.compare).parameters
    for name in ("limit", "max_tokens", "max_new_tokens"):
        assert ours[name].default == theirs[name].default


def test_help_fits_80_columns_and_loads_no_framework() -> None:
    script = (
        "import sys\nfrom helium_onnx.cli import main\nsys.argv = ['helium-onnx', 'compare', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'matplotlib', 'jinja2', 'numpy', 'tokenizers', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=environment)
    assert done.stderr == "[]\n"
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_file(
    number: signal.Signals, sample_bundle: Path, sample_checkpoint: Path, tmp_path: Path
) -> None:
    page = tmp_path / "pages" / "report.html"
    page.parent.mkdir()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    args = [
        *(sys.executable, "-m", "helium_onnx", "validate", sample_bundle, "--against", sample_checkpoint),
        *("--text", VALID, "--html", page),
    ]
    process = subprocess.Popen(
        args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(temporary)}
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("reference:"):  # its first line: on a fast machine not every tenth is shown
            break
    time.sleep(0.2)
    process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert out == ""
    assert list(page.parent.iterdir()) == []
    # ONNX Runtime may leave an empty mark of its own there; hidden states would be megabytes.
    assert sum(entry.stat().st_size for entry in temporary.iterdir()) < 1000


def test_without_the_packages_of_the_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for package, name in (("evaluation", "page"), ("evaluation", "charts"), ("pages", "drawing")):
        monkeypatch.delitem(sys.modules, f"helium_onnx.{package}.{name}", raising=False)
        monkeypatch.delattr(f"helium_onnx.{package}.{name}", raising=False)  # where an import statement looks first
    result = invoke("validate", "out", "--against", "c", "--text", "t", "--html", tmp_path / "r.html")
    assert result.exit_code == 1
    assert "pip install 'helium-onnx[eval]'" in result.stderr
