"""A job over Ray Data, with two workers here: killed, interrupted, resumed. ``make ray`` makes the environment.

Each job is the program in a process of its own, as a user starts it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from command_line import run, start

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None and not os.environ.get("HELIUM_REQUIRE_RAY"),
        reason="ray is not installed: make ray",
    ),
]
ROWS = 600
#: Sampled, so that a row which gets another seed or comes from elsewhere shows.
OPTIONS = ("--max-new-tokens", 40, "--ignore-eos", "--temperature", 1, "--seed", 11)
RAY = ("--ray", "auto", "--workers", 2)


@pytest.fixture(scope="module")
def bundle(request: pytest.FixtureRequest) -> Path:
    """HELIUM_BUNDLE, where the environment cannot export one (Ray's has no torch); else the sample."""
    given = os.environ.get("HELIUM_BUNDLE")
    path: Path = Path(given).resolve() if given else request.getfixturevalue("sample_bundle")
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ray") / "in.jsonl"
    starts = ("To insert a table", "Pour insérer un tableau", "So fügen Sie", "Para insertar una tabla en el documento")
    rows = [{"id": i, "text": f"{starts[i % 4]} {'x' * (i % 7)} {i}"} for i in range(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def expected(bundle: Path, source: Path) -> bytes:
    """The output of one process."""
    output = source.with_name("expected.jsonl")
    done = run("batch", bundle, source, output, *OPTIONS, "--threads", 1)
    assert done.returncode == 0, done.stderr
    return output.read_bytes()


def processes(name: str) -> set[int]:
    """Of Ray's, by the beginning of their command lines; those that have ended and were not asked for are none."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if name.encode() in command:
                found.add(int(entry.name))
    return found


def wait_for(process: subprocess.Popen[bytes], output: Path, rows: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if output.exists() and output.read_bytes().count(b"\n") >= rows:
            return
        time.sleep(0.01)
    raise AssertionError(f"no rows came: {process.communicate(timeout=10)}")


def assert_none_left(before: set[int]) -> None:
    """Ray's processes end after the one that started them, not with it."""
    deadline = time.monotonic() + 30
    while left := (processes("ray::") | processes("raylet") | processes("gcs_server")) - before:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def everything() -> set[int]:
    return processes("ray::") | processes("raylet") | processes("gcs_server")


def rows_of(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


@pytest.mark.parametrize("ordered", [True, False])
def test_a_killed_worker_loses_and_doubles_nothing(
    ordered: bool, bundle: Path, source: Path, expected: bytes, tmp_path: Path
) -> None:
    output, before = tmp_path / "out.jsonl", everything()
    order = "--ordered" if ordered else "--unordered"
    process = start("batch", bundle, source, output, *OPTIONS, *RAY, order, "--json")
    wait_for(process, output, 1)
    workers = processes("ray::MapWorker") - before
    victim = min(workers)
    os.kill(victim, signal.SIGKILL)
    there = output.read_bytes().count(b"\n")
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert there < ROWS, "the job was over before a worker could be killed"
    assert {**json.loads(stdout), "seconds": 0} == {"rows": ROWS, "new_rows": ROWS, "bad_rows": 0, "seconds": 0}
    assert str(victim).encode() in stderr  # Ray tells which one died
    if ordered:
        assert output.read_bytes() == expected
    else:
        rows = rows_of(output.read_bytes())
        assert sorted(row.pop("line") for row in rows) == list(range(1, ROWS + 1))
        assert sorted(rows, key=lambda row: row["id"]) == rows_of(expected)
    assert_none_left(before)


def test_workers_that_die_again_and_again_end_the_job(bundle: Path, source: Path, tmp_path: Path) -> None:
    """As where a row, or too little memory, kills whoever works on it: nobody waits for ever."""
    output, before = tmp_path / "out.jsonl", everything()
    process = start("batch", bundle, source, output, *OPTIONS, "--ray", "auto", "--workers", 1)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        for worker in processes("ray::MapWorker") - before:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        time.sleep(0.3)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"error: the workers could not go on" in stderr and b"--resume goes on" in stderr
    assert b"Traceback" not in stderr
    assert_none_left(before)


def test_interrupted_and_resumed_without_ray(bundle: Path, source: Path, expected: bytes, tmp_path: Path) -> None:
    output, before = tmp_path / "out.jsonl", everything()
    process = start("batch", bundle, source, output, *OPTIONS, *RAY)
    wait_for(process, output, 1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert b"--resume goes on" in stderr
    assert b"Traceback" not in stderr
    assert 0 < output.read_bytes().count(b"\n") < ROWS
    assert expected.startswith(output.read_bytes())
    assert_none_left(before)
    done = run("batch", bundle, source, output, *OPTIONS, "--resume")
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == expected


def test_begun_without_ray_killed_and_resumed_with_it(
    bundle: Path, source: Path, expected: bytes, tmp_path: Path
) -> None:
    output, before = tmp_path / "out.jsonl", everything()
    process = start("batch", bundle, source, output, *OPTIONS)
    wait_for(process, output, 1)
    process.kill()
    process.communicate(timeout=60)
    with output.open("ab") as file:
        file.write(b'{"id": 400, "te')
    done = run("batch", bundle, source, output, *OPTIONS, *RAY, "--resume")
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == expected
    assert_none_left(before)


def test_an_error_of_a_worker_is_told_as_our_own(bundle: Path, source: Path, tmp_path: Path) -> None:
    before = everything()
    args = ("batch", bundle, source, tmp_path / "out.jsonl", *OPTIONS)
    done = run(*args, *RAY, "--provider", "cuda")
    assert done.returncode == 1
    assert b"error: " in done.stderr and b"cuda" in done.stderr.lower() and b"Traceback" not in done.stderr
    done = run(*args, "--ray", "auto", "--workers", 999)
    assert done.returncode == 1
    assert b"the Ray cluster has too few resources" in done.stderr
    assert_none_left(before)


def test_a_cluster_that_is_not_there(bundle: Path, source: Path, tmp_path: Path) -> None:
    done = run("batch", bundle, source, tmp_path / "out.jsonl", *OPTIONS, "--ray", "127.0.0.1:1")
    assert done.returncode == 1
    assert b"error: there is no Ray cluster at 127.0.0.1:1" in done.stderr, done.stderr
    done = run("batch", bundle, source, tmp_path / "out.jsonl", *OPTIONS, "--ray", "ray://127.0.0.1:10001")
    assert done.returncode == 2
    assert b"10.0.0.5:6379" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_cluster_of_somebody_else_stays(bundle: Path, source: Path, expected: bytes, tmp_path: Path) -> None:
    """``auto`` finds the one of this machine, and so does its address; a job leaves it as it was."""
    before = everything()
    short = tempfile.mkdtemp(prefix="ray-")  # its sockets' paths have 107 bytes at most
    begin = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--port=0", "--num-cpus=2"]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    shown = subprocess.run(
        [*begin, "--include-dashboard=false", f"--temp-dir={short}"], capture_output=True, text=True, env=environment
    )
    cluster = everything() - before
    try:
        address = re.search(r"--address='([0-9.]+:[0-9]+)'", shown.stdout + shown.stderr)
        assert address is not None, shown
        for name, where in (("a.jsonl", "auto"), ("b.jsonl", address[1])):
            done = run(
                "batch", bundle, source, tmp_path / name, *OPTIONS, "--ray", where, "--threads", 1, env=environment
            )
            assert done.returncode == 0, done.stderr
            assert (tmp_path / name).read_bytes() == expected
        assert cluster and processes("gcs_server") - before <= cluster <= everything()
    finally:
        for process in everything() - before:
            os.kill(process, signal.SIGKILL)
        shutil.rmtree(short, ignore_errors=True)
    assert_none_left(before)
