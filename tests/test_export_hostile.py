"""Exports that go wrong half-way, as a user has them: full disk, kill -9, two at once, a read-only target."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import disks
import pytest
import tiny

from helium_onnx.bundle import Bundle

CLI = [sys.executable, "-m", "helium_onnx"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for the weights to take a moment and some 20 MB."""
    folder = tmp_path_factory.mktemp("hostile") / "checkpoint"
    return tiny.write_checkpoint(
        folder, hidden_size=512, intermediate_size=1024, num_attention_heads=8, num_key_value_heads=8, head_dim=64,
        num_hidden_layers=2, vocab_size=2048,
    )  # fmt: skip


def export(checkpoint: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [*CLI, "export", str(checkpoint), str(out), "--recipe", "cpu-fp32", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def is_absent_or_whole(target: Path) -> bool:
    if not target.exists():
        return False
    Bundle.open(target).check_digests()
    return True


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs; the suite runs as root in CI, and says so where it cannot."""
    folder = tmp_path / "disk"
    with disks.tmpfs(folder, "size=12m"):
        yield folder


def test_disk_too_small_is_said_before_the_weights_are_written(checkpoint: Path, small_disk: Path) -> None:
    done = export(checkpoint, small_disk / "out")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "MB" in done.stderr or "GB" in done.stderr
    assert "free" in done.stderr
    assert list(small_disk.iterdir()) == []


def test_disk_that_fills_in_mid_export_leaves_nothing(checkpoint: Path, small_disk: Path) -> None:
    # The preflight is told that there is room, as when another program takes it meanwhile.
    script = (
        "import sys, helium_onnx.atomic as atomic; atomic.free_bytes = lambda folder: 1 << 40;"
        "from helium_onnx.cli import main; sys.argv[0] = 'helium-onnx'; main()"
    )
    command = [sys.executable, "-c", script, "export", str(checkpoint), str(small_disk / "out"), "--recipe", "cpu-fp32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "error:" in done.stderr
    assert list(small_disk.iterdir()) == []


def test_read_only_target_is_an_error_and_nothing_is_left(checkpoint: Path, small_disk: Path) -> None:
    disks.make_read_only(small_disk)
    done = export(checkpoint, small_disk / "out")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error:" in done.stderr
    assert list(small_disk.iterdir()) == []


@pytest.mark.slow
def test_kill_9_leaves_the_target_absent_or_whole(checkpoint: Path, tmp_path: Path) -> None:
    out, chance = tmp_path / "out", random.Random(0)
    command = [*CLI, "export", str(checkpoint), str(out), "--recipe", "cpu-fp32", "--force"]
    start = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    duration = time.monotonic() - start
    shutil.rmtree(out)
    for _ in range(6):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Most of the time is imports and trace; the files are written in the last third.
        time.sleep(duration * chance.uniform(0.5, 1.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        is_absent_or_whole(out)  # raises on half a bundle
    done = export(checkpoint, out, "--force")
    assert done.returncode == 0, done.stderr
    assert is_absent_or_whole(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "leftovers of killed exports are cleared by the next"


@pytest.mark.slow
def test_of_two_exporters_on_one_target_one_wins(checkpoint: Path, tmp_path: Path) -> None:
    command = [*CLI, "export", str(checkpoint), str(tmp_path / "out"), "--recipe", "cpu-fp32"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for _ in range(2)]
    ended = [(process.communicate(timeout=300)[1], process.returncode) for process in both]
    assert sorted(code for _, code in ended) == [0, 1], ended
    loser = next(text for text, code in ended if code)
    assert "Traceback" not in loser
    assert "being written by another export" in loser or "exists" in loser
    assert is_absent_or_whole(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
