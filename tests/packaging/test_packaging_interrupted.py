"""Packaging that is stopped: Ctrl-C, kill -9, a compiler that dies, a full disk. Nothing half-written is left.

The compiler is replaced where it would be too fast to meet; what it prints and how it ends is real.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import disks
import pytest
from packages import need_compiler

import helium_onnx
from helium_onnx.bundle import Bundle, BundleWriter
from helium_onnx.errors import HeliumOnnxError, ProviderError, ResourceError
from helium_onnx.packaging import android_qnn, qnn_compiler

#: ``python -c``: the command line with another compiler.
CLI = (
    "import sys\nfrom helium_onnx.packaging import android_qnn, qnn_compiler\n"
    "android_qnn.check_installed = lambda _row: None\n"
    "qnn_compiler.MODULE = {module!r}\nsys.path.insert(0, {folder!r})\n"
    "from helium_onnx.cli import main\nsys.argv[0] = 'helium-onnx'\nmain()\n"
)
#: Takes its job as the real one does, says who it is, and works for a minute.
SLEEPING = (
    "import os, pathlib, time\nfrom helium_onnx.packaging import qnn_compiler_process as real\n"
    "def load_graph(*_):\n"
    "    pathlib.Path(__file__).with_name('pid').write_text(str(os.getpid()))\n"
    "    time.sleep(60)\n"
    "real.load_graph = load_graph\nreal.main()\n"
)


def compiler(folder: Path, text: str) -> str:
    """A module in ``folder`` to compile with; its name."""
    (folder / "fake_compiler.py").write_text(text)
    return "fake_compiler"


def start(folder: Path, bundle: Bundle, dest: Path) -> subprocess.Popen[bytes]:
    """The command with the sleeping compiler, when that has begun."""
    script = CLI.format(module=compiler(folder, SLEEPING), folder=str(folder))
    command = [sys.executable, "-c", script, "package", bundle.path, dest, "--for", "android-qnn", "--soc", "75/57"]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (folder / "pid").exists() or not (folder / "pid").read_text():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


def is_gone(pid: int) -> bool:
    """Within seconds."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":  # ended, and nobody has asked yet
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_it_compiles(number: signal.Signals, code: int, qnn_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with start(tmp_path, qnn_bundle, out / "p") as process:
        begun = time.monotonic()
        process.send_signal(number)
        shown = process.communicate(timeout=30)[1]
    assert time.monotonic() - begun < 10
    assert process.returncode == code
    assert shown.splitlines()[-1].startswith(b"interrupted")
    assert is_gone(int((tmp_path / "pid").read_text()))
    assert list(out.iterdir()) == []


def test_kill_9_while_it_compiles(qnn_bundle: Bundle, tmp_path: Path) -> None:
    """The compiler does not work on for nobody, and what is left is removed by the next packaging."""
    out = tmp_path / "out"
    out.mkdir()
    with start(tmp_path, qnn_bundle, out / "p") as process:
        process.kill()
    assert is_gone(int((tmp_path / "pid").read_text()))
    assert {path.name.partition("-")[0] for path in out.iterdir()} == {".p.partial", ".p.lock"}
    with BundleWriter(out / "p", force=False, expected_bytes=0):  # which every packaging begins with
        pass
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("end", "kind", "found"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", ResourceError, "where memory is short"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", ProviderError, "SIGSEGV: said before"),
        ("os._exit(3)", ProviderError, "exit code 3: said before"),
        ("os._exit(0)", ProviderError, "exit code 0: said before"),
    ],
)
def test_a_compiler_that_dies(
    end: str,
    kind: type[HeliumOnnxError],
    found: str,
    qnn_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = f"import os, signal, sys\nsys.stdin.readline()\nprint('said before', file=sys.stderr, flush=True)\n{end}\n"
    monkeypatch.setattr(qnn_compiler, "MODULE", compiler(tmp_path, text))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(android_qnn, "check_installed", lambda _row: None)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(kind) as caught:
        helium_onnx.package(qnn_bundle.path, out / "p", target="android-qnn", soc="75/57")
    assert found in str(caught.value.found)
    assert list(out.iterdir()) == []


def test_a_disk_that_fills(qnn_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The preflight is told that there is room, as when another program takes it meanwhile."""
    need_compiler()
    with disks.tmpfs(tmp_path / "disk", "size=10m"):
        monkeypatch.setattr("helium_onnx.atomic.free_bytes", lambda _folder: 1 << 40)
        with pytest.raises(ResourceError, match="too little room"):
            helium_onnx.package(qnn_bundle.path, tmp_path / "disk" / "p", target="android-qnn", soc="75/57")
        assert list((tmp_path / "disk").iterdir()) == []


@pytest.mark.parametrize("target", ["android-qnn", "web"])
def test_a_disk_that_is_too_small(
    target: str, qnn_bundle: Bundle, sample_bundle_fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said before anything is compiled or copied."""
    monkeypatch.setattr(android_qnn, "check_installed", lambda _row: None)
    path, soc = (qnn_bundle.path, "75/57") if target == "android-qnn" else (sample_bundle_fp32, None)
    events: list[str] = []
    with disks.tmpfs(tmp_path / "disk", "size=2m"):
        with pytest.raises(ResourceError, match="GB needed"):
            helium_onnx.package(
                path, tmp_path / "disk" / "p", target=target, soc=soc, progress=lambda event: events.append(event.stage)
            )
        assert list((tmp_path / "disk").iterdir()) == []
    assert set(events) <= {"verify"}


def test_the_job_is_all_that_the_other_process_is_told(qnn_bundle: Bundle, tmp_path: Path) -> None:
    """It imports what this one does, wherever it stands: paths are whole."""
    need_compiler()
    here = Path.cwd()
    os.chdir(qnn_bundle.path.parent)
    try:
        dest = Path(os.path.relpath(tmp_path)) / "p"
        helium_onnx.package(qnn_bundle.path.name, dest, target="android-qnn", soc="75/57")
    finally:
        os.chdir(here)
    assert Bundle.open(tmp_path / "p").manifest.package["soc"] == "75/57"
