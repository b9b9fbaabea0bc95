"""helium-onnx batch, as users meet it: what it prints, exit codes, signals, and what goes on after them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import assert_plain, invoke, names_in, on_terminal, run, start

ROWS = 64


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    texts = [("To insert a table", "Pour insérer un tableau", "So fügen Sie eine Tabelle")[i % 3] for i in range(ROWS)]
    path.write_text(
        "".join(json.dumps({"id": i, "text": text + " " * (i % 2) + f" {i}"}) + "\n" for i, text in enumerate(texts))
    )
    return path


def wait_for_rows(output: Path, process: subprocess.Popen[bytes], count: int = 1) -> None:
    """Until so many rows are written."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if output.exists() and output.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.002)
    raise AssertionError(f"no rows came: {process.communicate(timeout=10)}")


def test_a_job(sample_bundle: Path, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    done = run("batch", sample_bundle, source, output, "--max-new-tokens", 4)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().startswith(f"{output}: {ROWS} rows, in ")
    assert done.stdout.count(b"\n") == 1
    assert f"text-generation: 100 % of {ROWS} rows".encode() in done.stderr
    assert_plain(done.stderr)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["id"] for row in rows] == list(range(ROWS))
    again = run("batch", sample_bundle, source, output, "--max-new-tokens", 4)
    assert again.returncode == 1
    assert b"is there already" in again.stderr and b"--resume" in again.stderr
    resumed = run("batch", sample_bundle, source, output, "--max-new-tokens", 4, "--resume", "--json", "--quiet")
    assert json.loads(resumed.stdout) == {**json.loads(resumed.stdout), "rows": ROWS, "new_rows": 0, "bad_rows": 0}
    assert resumed.stderr == b""


def test_progress_on_a_terminal(sample_bundle: Path, source: Path, tmp_path: Path) -> None:
    # Long enough for some frames: of a job of 0.2 s the terminal may show none but the first.
    code, shown = on_terminal("batch", sample_bundle, source, tmp_path / "out.jsonl", "--max-new-tokens", 96)
    assert code == 0
    assert f"of {ROWS} rows" in shown and "rows/s" in shown


def test_stdin(sample_bundle: Path, source: Path, tmp_path: Path) -> None:
    args = ("batch", sample_bundle, "-", tmp_path / "out.jsonl", "--max-new-tokens", 2)
    assert invoke(*args, stdin=source.read_bytes()).exit_code == 0
    resumed = invoke(*args, "--resume", stdin=source.read_bytes())
    assert f"{ROWS} rows, 0 of them new" in resumed.stdout
    other = invoke(*args, "--resume", stdin='{"text": "a"}\n')
    assert other.exit_code == 1
    assert "another job" in other.stderr
    assert "stdin, line 1 cannot be used" in invoke(*args, "--force", stdin="x\n").stderr


def test_a_bad_row_is_named_by_file_and_line(sample_bundle: Path, source: Path, tmp_path: Path) -> None:
    with source.open("a") as file:
        file.write('{"text": 5}\n')
    args = ("batch", sample_bundle, source, tmp_path / "out.jsonl", "--max-new-tokens", 2)
    result = invoke(*args)
    assert result.exit_code == 1
    assert f'error: {source}, line {ROWS + 1} cannot be used\n  found:    "text" is no text, but 5\n' in result.stderr
    assert names_in(tmp_path) == ["in.jsonl"]
    result = invoke(*args, "--bad-rows", "report")
    assert f"{ROWS + 1} rows, 1 with an error" in result.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_whole_rows_and_says_so(
    number: signal.Signals, sample_bundle: Path, source: Path, tmp_path: Path
) -> None:
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    args = ("--max-new-tokens", 200, "--ignore-eos", "--unordered")
    assert run("batch", sample_bundle, source, whole, *args).returncode == 0
    process = start("batch", sample_bundle, source, output, *args)
    wait_for_rows(output, process)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert stdout == b""
    assert f"{output} holds whole rows; the same command with --resume goes on\n".encode() in stderr
    assert b"interrupted" in stderr
    assert b"Traceback" not in stderr
    assert 0 < output.read_bytes().count(b"\n") < ROWS
    assert run("batch", sample_bundle, source, output, *args, "--resume").returncode == 0
    assert sorted(output.read_bytes().splitlines()) == sorted(whole.read_bytes().splitlines())


def test_killed_and_resumed_until_it_is_done(sample_bundle: Path, source: Path, tmp_path: Path) -> None:
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    args = ("--max-new-tokens", 100, "--ignore-eos", "--batch-tokens", 700, "--temperature", 1, "--seed", 3)
    assert run("batch", sample_bundle, source, whole, *args).returncode == 0
    args = (*args, "--unordered", "--resume")
    killed = there = 0
    while killed < 4:
        process = start("batch", sample_bundle, source, output, *args)
        wait_for_rows(output, process, there + 1)
        process.kill()
        process.communicate(timeout=60)
        killed += 1
        rows = output.read_bytes().count(b"\n")
        assert there < rows < ROWS
        there = rows
    assert run("batch", sample_bundle, source, output, *args).returncode == 0
    found = [json.loads(line) for line in output.read_text().splitlines()]
    expected = [json.loads(line) for line in whole.read_text().splitlines()]
    assert [row.pop("line") for row in found] != list(range(1, ROWS + 1))
    assert sorted(found, key=lambda row: row["id"]) == expected


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--task", "chat"], 2, "there is no such task"),
        (["--task", "token-classification"], 1, "cannot do that"),
        (["--pooling", "mean"], 2, "pooling is no option of text-generation"),
        (["--resume", "--force"], 2, "resume and force exclude each other"),
        (["--workers", "2"], 2, "workers are Ray's"),
        (["--bad-rows", "skip"], 2, "bad_rows"),
        (["--kernels", "fast"], 2, "kernels"),
        (["--temperature", "-1"], 2, "temperature"),
        (["--context", "9"], 1, "line 1 cannot be used"),
    ],
    ids=str,
)
def test_wrong_uses(args: list[str], code: int, words: str, sample_bundle: Path, source: Path, tmp_path: Path) -> None:
    result = invoke("batch", sample_bundle, source, tmp_path / "out.jsonl", *args)
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert names_in(tmp_path) == ["in.jsonl"]


def test_files_that_are_none(sample_bundle: Path, source: Path, tmp_path: Path) -> None:
    assert "there is no file" in invoke("batch", sample_bundle, tmp_path / "no", tmp_path / "out.jsonl").stderr
    assert "there is no folder" in invoke("batch", sample_bundle, source, tmp_path / "no/out.jsonl").stderr
    assert "There is no folder" in invoke("batch", tmp_path / "no", source, tmp_path / "out.jsonl").stderr


def test_ray_that_is_not_installed(
    sample_bundle: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = invoke("batch", sample_bundle, source, tmp_path / "out.jsonl", "--ray", "auto")
    assert result.exit_code == 1
    assert "ray is not installed" in result.stderr and "pip install 'helium-onnx[ray]'" in result.stderr
    assert names_in(tmp_path) == ["in.jsonl"]
