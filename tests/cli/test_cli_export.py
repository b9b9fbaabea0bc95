"""helium-onnx export, as users meet it: texts, streams, exit codes, signals."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import assert_plain, invoke, names_in, on_terminal, run, start


class TestExport:
    def test_piped(self, sample_checkpoint: Path, tmp_path: Path) -> None:
        out = tmp_path / "a bundle"
        done = run("export", sample_checkpoint, out, "--recipe", "cpu-int8")
        assert done.returncode == 0
        summary = rf"{re.escape(str(out))}: [\d.]+ MB in .* s\. Next: helium-onnx generate '{re.escape(str(out))}' .*\n"
        assert re.fullmatch(summary, done.stdout.decode())
        lines = done.stderr.decode().splitlines()
        stages = [line.split(":")[0] for line in lines]
        assert list(dict.fromkeys(stages)) == ["start", "read", "trace", "weights", "finish"]
        assert stages.count("weights") <= 10
        assert lines[stages.index("finish") - 1].startswith("weights: 100 % of ")
        assert_plain(done.stderr)
        assert names_in(tmp_path) == ["a bundle"]

    def test_on_a_terminal(self, sample_checkpoint: Path, tmp_path: Path) -> None:
        code, shown = on_terminal("export", sample_checkpoint, tmp_path / "b", "-r", "cpu-fp32")
        assert code == 0
        for stage in ("start", "read", "trace", "weights", "finish"):
            assert re.search(rf"✓.*{stage} ", shown)
        last = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", shown).splitlines()[-1]
        assert last.strip().startswith(f"{tmp_path / 'b'}: ")

    def test_quiet(self, sample_checkpoint: Path, tmp_path: Path) -> None:
        done = run("export", sample_checkpoint, tmp_path / "b", "--quiet")
        assert (done.returncode, done.stderr) == (0, b"")
        again = run("export", sample_checkpoint, tmp_path / "b", "-q")
        assert again.returncode == 1
        assert b"--force replaces it" in again.stderr

    @pytest.mark.parametrize(
        ("args", "code", "message"),
        [
            (["no/such/folder", "OUT"], 1, "no/such/folder"),
            (["CHECKPOINT", "OUT", "--recipe", "cpu-int44"], 1, "did you mean 'cpu-int4'?"),
            (["CHECKPOINT", "EXISTS"], 1, "exists and is not a bundle"),
            (["CHECKPOINT", "EXISTS", "--force"], 1, "exists and is not a bundle"),
            (["CHECKPOINT", "OUT", "--recipe", "RECIPE"], 1, "unknown key 'sumary'"),
            (["CHECKPOINT"], 2, "OUT"),
            (["CHECKPOINT", "OUT", "--nonsense"], 2, "--nonsense"),
        ],
    )
    def test_errors(self, args: list[str], code: int, message: str, sample_checkpoint: Path, tmp_path: Path) -> None:
        exists, recipe = tmp_path / "exists", tmp_path / "mine.toml"
        exists.mkdir()
        (exists / "letter.txt").write_text("dear")
        recipe.write_text('sumary = "a slip of the pen"\n')
        names = {"CHECKPOINT": sample_checkpoint, "OUT": tmp_path / "b", "EXISTS": exists, "RECIPE": recipe}
        result = invoke("export", *(names.get(arg, arg) for arg in args), "--offline")
        assert result.exit_code == code
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
        assert names_in(tmp_path) == ["exists", "mine.toml"]
        if code == 1:
            last = result.stderr[result.stderr.index("error: ") :]
            assert re.fullmatch(r"error: .*\n(  (found|expected|remedy):.*\n)+", last)

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
    def test_signal_during_the_trace(
        self, number: signal.Signals, code: int, sample_checkpoint: Path, tmp_path: Path
    ) -> None:
        with start("export", sample_checkpoint, tmp_path / "b") as process:
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith(b"trace:"):
                    break
            time.sleep(0.3)
            process.send_signal(number)
            rest = process.stderr.read()
        assert process.returncode == code
        assert rest.startswith(b"interrupted")
        assert len(rest.splitlines()) == 1
        assert names_in(tmp_path) == []

    @pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
    def test_signals_while_the_bundle_is_written(
        self, number: str, code: int, sample_checkpoint: Path, tmp_path: Path
    ) -> None:
        """Two signals: the second must not disturb the clean-up after the first."""
        script = (
            "import contextlib, os, shutil, signal, sys\nfrom helium_onnx import cli\n"
            f"kill = lambda: os.kill(os.getpid(), signal.{number})\n"
            "@contextlib.contextmanager\ndef display(**_):\n"
            "    def show(event):\n"
            "        if event.stage == 'weights':\n"
            "            print(*os.listdir(os.path.dirname(sys.argv[3])))\n"
            "            kill()\n"
            "    yield show\n"
            "cli.progress_display = display\n"
            "real = shutil.rmtree\n"
            "def rmtree(*a, **k):\n    kill()\n    real(*a, **k)\n"
            "shutil.rmtree = rmtree\n"
            "sys.argv[0] = 'helium-onnx'\ncli.main()\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, "export", str(sample_checkpoint), str(tmp_path / "b")],
            capture_output=True,
            text=True,
            timeout=120,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert done.returncode == code, done.stderr
        assert ".b." in done.stdout  # it had begun
        assert done.stderr.startswith("interrupted")
        assert names_in(tmp_path) == []

    def test_too_little_address_space(self, sample_checkpoint: Path, tmp_path: Path) -> None:
        done = run("export", sample_checkpoint, tmp_path / "b", "-q", before="ulimit -v 2000000")
        assert done.returncode == 1
        assert done.stderr.decode() == (
            "error: export needs more address space than this process may use\n"
            "  found:    a limit of 2.05 GB\n"
            "  expected: at least 2.50 GB\n"
            "  remedy:   raise the limit: ulimit -v 2441407, or ulimit -v unlimited\n"
        )
        assert names_in(tmp_path) == []

    def test_just_enough_address_space(self, sample_checkpoint: Path, tmp_path: Path) -> None:
        done = run("export", sample_checkpoint, tmp_path / "b", "-q", before="ulimit -v 2441407")
        assert (done.returncode, done.stderr) == (0, b"")
