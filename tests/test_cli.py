"""The command line as its users meet it: texts, streams, exit codes, signals."""

from __future__ import annotations

import inspect
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

import helium_onnx
from helium_onnx import cli
from helium_onnx.generation.model import LanguageModel
from helium_onnx.generation.sampling import SamplingOptions
from helium_onnx.progress import ProgressEvent
from helium_onnx.terminal import BarProgress, PlainProgress, duration, size
from helium_onnx.verification import Check

PROMPT = "To insert a table"
COMMANDS = ("export", "recipes", "generate", "inspect", "verify", "validate")
PROGRAM = [sys.executable, "-m", "helium_onnx"]


def invoke(*args: object, stdin: str | bytes | None = None) -> Result:
    """Run in this process, with stdout and stderr piped."""
    return CliRunner().invoke(cli.app, [str(arg) for arg in args], input=stdin)


def run(*args: Any, before: str = "", **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run as a process; ``before`` is shell text such as ``ulimit``."""
    command = [*PROGRAM, *(arg if isinstance(arg, bytes) else str(arg) for arg in args)]
    if before:
        command = ["bash", "-c", f'{before}; exec "$@"', "bash", *command]
    return subprocess.run(command, capture_output=True, timeout=120, **options)


def start(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
    """Start as a process that takes Ctrl-C even where the tests run in a shell's background."""
    return subprocess.Popen(
        [*PROGRAM, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def on_terminal(*args: object, env: dict[str, str] | None = None, stdin: int | None = None) -> tuple[int, str]:
    """Run on a terminal of 80 columns; exit code and all that it showed."""
    ours, theirs = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "CI")}
    environment |= {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24", **(env or {})}
    process = subprocess.Popen(
        [*PROGRAM, *map(str, args)],
        stdin=theirs if stdin is None else stdin,
        stdout=theirs,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            data = os.read(ours, 65536)
        except OSError:  # Linux's end of a terminal
            break
        if not data:
            break
        shown += data
    os.close(ours)
    return process.wait(timeout=60), shown.decode().replace("\r\n", "\n")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_plain(text: str | bytes) -> None:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    assert b"\x1b" not in data
    assert b"\r" not in data


@pytest.fixture(scope="module")
def expected(sample_bundle: Path) -> str:
    """Sixteen greedy tokens after PROMPT."""
    with helium_onnx.load(sample_bundle) as model:
        return model.generate(PROMPT, max_new_tokens=16).text


class TestHelp:
    @pytest.mark.parametrize("command", ["", *COMMANDS])
    def test_help_loads_no_framework(self, command: str) -> None:
        script = (
            "import sys\nfrom helium_onnx.cli import main\n"
            f"sys.argv = ['helium-onnx', *{command.split()!r}, '--help']\n"
            "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
            "heavy = {'torch', 'onnx', 'onnxruntime', 'onnx_ir', 'transformers', 'numpy', 'tokenizers', 'rich'}\n"
            "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
        assert done.stderr == "[]\n"
        assert "Usage: helium-onnx" in done.stdout

    def test_no_arguments_show_the_commands(self) -> None:
        result = invoke()
        assert all(command in result.output for command in COMMANDS)

    def test_version(self) -> None:
        assert invoke("--version").stdout == f"helium-onnx {helium_onnx.__version__}\n"

    @pytest.mark.parametrize("command", ["export", "generate", "validate"])
    def test_help_fits_80_columns(self, command: str) -> None:
        done = run(command, "--help", env={**os.environ, "COLUMNS": "80"})
        assert max(map(len, done.stdout.decode().splitlines())) <= 80

    @pytest.mark.parametrize(
        ("command", "functions"),
        [
            ("export", [helium_onnx.export]),
            ("generate", [helium_onnx.load, SamplingOptions]),
            ("validate", [helium_onnx.validate]),
        ],
    )
    def test_defaults_are_those_of_the_function(self, command: str, functions: list[Callable[..., object]]) -> None:
        ours = inspect.signature(getattr(cli, command)).parameters
        for function in functions:
            for name, theirs in inspect.signature(function).parameters.items():
                option = {"context_length": "context", "path": "out"}.get(name, name)
                if name != "progress":
                    assert ours[option].default == theirs.default, name

    def test_the_default_of_max_new_tokens(self) -> None:
        default = inspect.signature(cli.generate).parameters["max_new_tokens"].default
        assert f"max_new_tokens: tokens to generate at most; {default}" in (
            sys.modules[LanguageModel.__module__].GenerationOptions.__doc__ or ""
        )


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


class TestRecipes:
    def test_piped_each_is_one_line(self) -> None:
        result = invoke("recipes")
        lines = result.stdout.splitlines()[1:]
        assert [line.split()[0] for line in lines] == [recipe.name for recipe in helium_onnx.list_recipes()]
        for line, recipe in zip(lines, helium_onnx.list_recipes(), strict=True):
            assert recipe.summary in line
            assert line == line.rstrip()
        assert_plain(result.stdout)

    def test_json(self) -> None:
        listed = json.loads(invoke("recipes", "--json").stdout)
        assert listed == [recipe.to_dict() for recipe in helium_onnx.list_recipes()]

    def test_on_a_terminal_nothing_is_cut(self) -> None:
        code, shown = on_terminal("recipes")
        text = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", shown)
        assert code == 0
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= 80


class TestGenerate:
    def test_piped_stdout_is_the_continuation_alone(self, sample_bundle: Path, expected: str) -> None:
        done = run("generate", sample_bundle, PROMPT, "--max-new-tokens", 16)
        assert done.returncode == 0
        assert done.stdout == f"{expected}\n".encode()
        assert_plain(done.stderr)
        assert b"tokens" not in done.stderr

    @pytest.mark.parametrize("flag", ["--stream", "--no-stream"])
    def test_streaming_changes_no_text(self, flag: str, sample_bundle: Path, expected: str) -> None:
        assert invoke("generate", sample_bundle, PROMPT, "--max-new-tokens", 16, flag).stdout == f"{expected}\n"

    @pytest.mark.parametrize("end", ["", "\n", "\r\n"])
    @pytest.mark.parametrize("args", [[], ["-"]])
    def test_stdin(self, end: str, args: list[str], sample_bundle: Path, expected: str) -> None:
        result = invoke("generate", sample_bundle, *args, "--max-new-tokens", 16, stdin=(PROMPT + end).encode())
        assert result.stdout == f"{expected}\n"

    def test_stdin_loses_one_newline_only(self, sample_bundle: Path) -> None:
        two = invoke("generate", sample_bundle, "--json", "--max-new-tokens", 1, stdin="a\n\n").stdout
        one = invoke("generate", sample_bundle, "a\n", "--json", "--max-new-tokens", 1).stdout
        for key in ("prompt_tokens", "token_ids"):
            assert json.loads(two)["generations"][0][key] == json.loads(one)["generations"][0][key]

    def test_json(self, sample_bundle: Path, expected: str) -> None:
        result = invoke("generate", sample_bundle, PROMPT, "--max-new-tokens", 16, "--json", "--logprobs", 2)
        answer = json.loads(result.stdout)
        (row,) = answer["generations"]
        assert row["text"] == expected
        assert len(row["token_ids"]) == len(row["logprobs"]) == 16
        assert len(row["logprobs"][0]["top"]) == 2
        assert answer["timings"]["total_seconds"] > 0

    def test_json_is_not_escaped(self, sample_bundle: Path) -> None:
        done = run("generate", sample_bundle, "Pour insérer un tableau, sélectionnez", "--json", "--max-new-tokens", 64)
        assert "é" in done.stdout.decode()

    def test_batch(self, sample_bundle: Path, expected: str) -> None:
        args = ("generate", sample_bundle, PROMPT, "Delete", "--max-new-tokens", 16)
        texts = [row["text"] for row in json.loads(invoke(*args, "--json").stdout)["generations"]]
        assert texts[0] == expected
        assert invoke(*args).stdout == f"{texts[0]}\n---\n{texts[1]}\n"

    def test_stop_may_be_repeated(self, sample_bundle: Path, expected: str) -> None:
        words = expected.split()
        result = invoke("generate", sample_bundle, PROMPT, "--stop", words[4], "--stop", words[2])
        assert result.stdout == expected[: min(expected.index(words[2]), expected.index(words[4]))] + "\n"

    def test_seed_repeats_a_text(self, sample_bundle: Path) -> None:
        args = ("generate", sample_bundle, PROMPT, "--temperature", 1, "--top-k", 50, "--top-p", 0.9, "--min-p", 0.01)
        texts = [invoke(*args, "--max-new-tokens", 16, "--seed", seed).stdout for seed in (7, 7, 8)]
        assert texts[0] == texts[1] != texts[2]

    def test_special_tokens_in_a_prompt_stay_text(self, sample_bundle: Path) -> None:
        args = ("generate", sample_bundle, "a</s>", "--json", "--max-new-tokens", 1)
        plain, special = (
            json.loads(invoke(*args, *flag).stdout)["generations"][0]["prompt_tokens"]
            for flag in ([], ["--parse-special"])
        )
        assert plain > special

    def test_stats(self, sample_bundle: Path) -> None:
        result = invoke("generate", sample_bundle, PROMPT, "--max-new-tokens", 16, "--stats", "-q")
        assert re.fullmatch(r"16 tokens, [\d.]+ tokens/s, first token [\d.]+ s, finish reason length\n", result.stderr)

    def test_on_a_terminal(self, sample_bundle: Path, expected: str) -> None:
        code, shown = on_terminal("generate", sample_bundle, PROMPT, "--max-new-tokens", 16)
        assert code == 0
        assert f"\x1b[2m{PROMPT}\x1b[0m{expected}\n" in shown
        assert "finish reason length" in shown

    def test_no_color(self, sample_bundle: Path, expected: str) -> None:
        _, shown = on_terminal("generate", sample_bundle, PROMPT, "--max-new-tokens", 16, env={"NO_COLOR": "1"})
        assert f"{PROMPT}{expected}\n" in shown
        assert not re.search(r"\x1b\[3\dm", shown)

    def test_a_terminal_gets_no_control_characters(self, sample_bundle: Path) -> None:
        _, shown = on_terminal("generate", sample_bundle, "a\x1b]0;gotcha\x07", "--max-new-tokens", 2)
        assert "\x1b]0;" not in shown
        assert "a␛]0;gotcha␇" in shown

    def test_no_prompt_on_a_terminal(self, sample_bundle: Path) -> None:
        code, shown = on_terminal("generate", sample_bundle)
        assert code == 2
        assert "there is no prompt" in shown

    @pytest.mark.parametrize(
        ("args", "code", "message"),
        [
            (["BUNDLE"], 2, "there is no prompt"),
            (["BUNDLE", "-", "-"], 2, "stdin can be read once only"),
            (["nowhere", "a"], 1, "There is no folder nowhere"),
            (["CHECKPOINT", "a"], 1, "this is a checkpoint"),
            (["BUNDLE", "word " * 3000], 1, "leaves no room in the context"),
            (["BUNDLE", "a", "--max-new-tokens", "4000"], 1, "do not fit the context"),
            (["BUNDLE", "a", "--max-new-tokens", "0"], 2, "--max-new-tokens"),
            (["BUNDLE", "a", "--max-new-tokens", "many"], 2, "--max-new-tokens"),
            (["BUNDLE", "a", "--temperature", "-1"], 2, "temperature"),
            (["BUNDLE", "a", "--temperature", "nan"], 2, "temperature"),
            (["BUNDLE", "a", "--top-p", "1.5"], 2, "top_p"),
            (["BUNDLE", "a", "--min-p", "-0.5"], 2, "min_p"),
            (["BUNDLE", "a", "--top-k", "-1"], 2, "top_k"),
            (["BUNDLE", "a", "--repetition-penalty", "0"], 2, "repetition_penalty"),
            (["BUNDLE", "a", "--seed", "-1"], 2, "seed"),
            (["BUNDLE", "a", "--stop", ""], 2, "stop string"),
            (["BUNDLE", "a", "--logprobs", "1"], 2, "add --json"),
            (["BUNDLE", "a", "--json", "--stream"], 2, "exclude each other"),
            (["BUNDLE", "a", "--provider", "abacus"], 1, "'abacus'"),
            (["BUNDLE", "a", "--context", "1000000"], 2, "context length"),
            (["BUNDLE", "a", "--threads", "0"], 2, "threads"),
        ],
    )
    def test_errors(
        self, args: list[str], code: int, message: str, sample_bundle: Path, sample_checkpoint: Path
    ) -> None:
        names = {"BUNDLE": sample_bundle, "CHECKPOINT": sample_checkpoint}
        result = invoke("generate", *(names.get(arg, arg) for arg in args), stdin="")
        assert result.exit_code == code
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert result.stdout == ""

    def test_an_empty_prompt_is_one(self, sample_bundle: Path) -> None:
        """<s> stands before every prompt, so an empty one is a text from the model's beginning."""
        result = invoke("generate", sample_bundle, "", "--max-new-tokens", 4, "--json")
        assert json.loads(result.stdout)["generations"][0]["prompt_tokens"] == 1

    @pytest.mark.parametrize("piped", [False, True])
    def test_bytes_that_are_no_text(self, piped: bool, sample_bundle: Path) -> None:
        bad = b"caf\xe9"
        done = run("generate", sample_bundle, *([] if piped else [bad]), input=bad if piped else None)
        assert done.returncode == 1
        assert b"U+DCE9 at position 3" in done.stderr
        assert done.stdout == b""

    def test_a_path_that_is_no_text(self, tmp_path: Path) -> None:
        done = run("inspect", os.fsencode(tmp_path) + b"/\xff")
        assert done.returncode == 1
        assert rb"\udcff" in done.stderr

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_an_interruption_keeps_the_text(self, number: signal.Signals, code: int, sample_bundle: Path) -> None:
        args = ("generate", sample_bundle, PROMPT, "--max-new-tokens", 1500, "--ignore-eos", "--stats", "-q")
        with start(*args) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            first = os.read(process.stdout.fileno(), 1)
            process.send_signal(number)
            text, told = first + process.stdout.read(), process.stderr.read()
        assert process.returncode == code
        assert text.endswith(b"\n")
        assert text.strip()
        assert b"finish reason interrupted" in told

    def test_an_interruption_keeps_the_json(self, sample_bundle: Path) -> None:
        args = ("generate", sample_bundle, PROMPT, "--max-new-tokens", 1500, "--ignore-eos", "--json")
        reasons = []
        for delay in (0.4, 0.8, 0.2, 1.6):  # the signal may come in the load, or after the end: machines differ
            with start(*args) as process:
                assert process.stdout is not None
                assert process.stderr is not None
                assert process.stderr.readline().startswith(b"load:")
                time.sleep(delay)
                process.send_signal(signal.SIGINT)
                text = process.stdout.read()
            reasons.append(json.loads(text)["generations"][0]["finish_reason"] if text else "before the first token")
            if reasons[-1] == "interrupted":
                assert process.returncode == 130
                return
        pytest.fail(f"no signal came in mid-generation: {reasons}")

    def test_a_second_interruption_quits_in_native_code(self) -> None:
        script = (
            "import hashlib\nfrom helium_onnx.interrupts import interrupts\n"
            "with interrupts(second='quits'):\n"
            "    print('ready', flush=True)\n"
            "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.5)  # the print returns before the native function begins
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            assert process.poll() is None  # native code goes on
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=10) == 130

    def test_a_reader_that_leaves(self, sample_bundle: Path) -> None:
        with start("generate", sample_bundle, PROMPT, "--max-new-tokens", 1500, "--ignore-eos", "-q") as process:
            assert process.stdout is not None
            assert process.stderr is not None
            os.read(process.stdout.fileno(), 1)
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 141

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
    def test_a_full_disk(self, sample_bundle: Path) -> None:
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                [*PROGRAM, "generate", str(sample_bundle), "a", "-q"], stdout=full, stderr=subprocess.PIPE, timeout=60
            )
        assert done.returncode == 1
        assert done.stderr.startswith(b"error: No space left on device\n")

    @pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-"])
    def test_a_closed_stream(self, closed: str, sample_bundle: Path) -> None:
        assert run("generate", sample_bundle, "a", "--max-new-tokens", 2, before=f"exec {closed}").returncode == 0

    def test_too_little_address_space(self, sample_bundle: Path) -> None:
        done = run("generate", sample_bundle, "a", before="ulimit -v 900000")
        assert done.returncode == 1
        assert done.stderr.startswith(b"error: load needs more address space than this process may use\n")

    def test_just_enough_address_space(self, sample_bundle: Path) -> None:
        needed = int(2.2 * helium_onnx.inspect(sample_bundle)["total_bytes"]) + 1_000_000_000
        done = run("generate", sample_bundle, "a", "--max-new-tokens", 4, "-q", before=f"ulimit -v {needed // 1024}")
        assert (done.returncode, done.stderr) == (0, b"")

    def test_latin_1(self, sample_bundle: Path) -> None:
        done = run(
            "generate", sample_bundle, "insérer → 表", "--json", "--max-new-tokens", 8,
            env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        )  # fmt: skip
        assert done.returncode == 0
        json.loads(done.stdout.decode("latin-1"))


class TestInspect:
    def test_text(self, sample_bundle: Path) -> None:
        result = invoke("inspect", sample_bundle)
        assert result.exit_code == 0
        for part in ("prefill.onnx", "attention", "bits a weight", "past_key_values.{0..5}.key"):
            assert part in result.stdout
        assert_plain(result.stdout)

    def test_json(self, sample_bundle: Path) -> None:
        assert json.loads(invoke("inspect", sample_bundle, "--json").stdout) == helium_onnx.inspect(sample_bundle)

    def test_wrong_path(self, sample_checkpoint: Path) -> None:
        result = invoke("inspect", sample_checkpoint)
        assert (result.exit_code, result.stdout) == (1, "")
        assert f"run helium-onnx export {sample_checkpoint}" in result.stderr


class TestVerify:
    @pytest.mark.parametrize("bundle", ["sample_bundle", "sample_bundle_fp32"])
    def test_a_whole_bundle(self, bundle: str, request: pytest.FixtureRequest) -> None:
        result = invoke("verify", request.getfixturevalue(bundle))
        assert result.exit_code == 0
        lines = result.stdout.splitlines()
        assert lines
        assert all(line.startswith("✓  ") for line in lines)
        assert_plain(result.stdout + result.stderr)

    def test_json(self, sample_bundle: Path) -> None:
        result = invoke("verify", sample_bundle, "--json", "-q")
        assert result.stderr == ""
        assert all(check.keys() == {"name", "ok", "detail"} and check["ok"] for check in json.loads(result.stdout))

    def test_a_check_that_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        checks = [Check("manifest", True, "good"), Check("files", False, "two\x1b[2J\n  lines [bold]")]
        monkeypatch.setattr(helium_onnx, "verify", lambda _path, **_: checks)
        result = invoke("verify", "anything")
        assert result.exit_code == 1
        assert result.stdout == "✓  manifest  good\n✗  files     two␛[2J\n               lines [bold]\n"
        assert invoke("verify", "anything", "--json").exit_code == 1

    def test_no_bundle(self, tmp_path: Path) -> None:
        result = invoke("verify", tmp_path)
        assert result.exit_code == 1
        assert "an empty folder" in result.stdout + result.stderr


class Report:
    """In the place of a ParityReport, which takes transformers to make."""

    def __init__(self, passed: bool) -> None:
        self.passed = passed

    def to_dict(self) -> dict[str, object]:
        return {"passed": self.passed}

    def render(self, console: Any) -> None:
        console.print("a report")


class TestValidate:
    @pytest.mark.parametrize("passed", [True, False])
    def test_report(self, passed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: dict[str, object] = {}

        def validate(path: Path, **options: object) -> Report:
            asked.update(options, path=path)
            return Report(passed)

        monkeypatch.setattr(helium_onnx, "validate", validate)
        args = ("validate", "out", "--against", "ckpt", "--prompt", "a", "--prompt", "b", "--max-new-tokens", 7)
        result = invoke(*args)
        assert (result.exit_code, result.stdout) == (0 if passed else 1, "a report\n")
        assert json.loads(invoke(*args, "--json").stdout) == {"passed": passed}
        asked.pop("progress")
        assert asked == {"path": Path("out"), "against": "ckpt", "prompts": ["a", "b"], "max_new_tokens": 7}

    def test_against_is_required(self) -> None:
        result = invoke("validate", "out")
        assert result.exit_code == 2
        assert "--against" in result.stderr


class TestErrors:
    """Errors that are not ours, raised by a command."""

    @pytest.fixture
    def failing(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
        def invoke_failing(error: BaseException, *options: str) -> Result:
            def inspect(_path: Path) -> None:
                raise error

            monkeypatch.setattr(helium_onnx, "inspect", inspect)
            return invoke(*options, "inspect", "out")

        return invoke_failing

    @pytest.mark.parametrize(
        ("error", "code", "message"),
        [
            (MemoryError(), 1, "error: too little memory\n  found:    MemoryError\n"),
            (ImportError("libtorch.so: failed to map segment from shared object"), 1, "error: too little memory\n"),
            (RuntimeError("std::bad_alloc"), 1, "error: too little memory\n"),
            (OSError(12, "Cannot allocate memory"), 1, "error: too little memory\n"),
            (PermissionError(13, "Permission denied", "/x/y"), 1, "error: /x/y: Permission denied\n"),
            (KeyboardInterrupt(), 130, "interrupted\n"),
            (BrokenPipeError(32, "Broken pipe"), 141, ""),
            (
                KeyError("\x1b[31mred"),
                1,
                "error: internal error: KeyError: '\\x1b[31mred'\n  remedy:   please report it",
            ),
        ],
    )
    def test_message(self, error: BaseException, code: int, message: str, failing: Callable[..., Result]) -> None:
        result = failing(error)
        assert result.exit_code == code
        assert result.stderr.startswith(message)
        assert "Traceback" not in result.stderr
        assert_plain(result.stderr)

    def test_debug_shows_the_traceback(self, failing: Callable[..., Result]) -> None:
        result = failing(ZeroDivisionError("oops"), "--debug")
        assert "Traceback" in result.stderr
        assert "internal error: ZeroDivisionError: oops" in result.stderr

    def test_an_interruption_that_a_library_swallowed(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def export(*_: object, progress: Callable[..., None], **__: object) -> None:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            except KeyboardInterrupt:
                pass
            progress(ProgressEvent("weights", "a"))
            raise AssertionError("it went on")

        monkeypatch.setattr(helium_onnx, "export", export)
        assert invoke("export", "a", tmp_path).exit_code == 143

    def test_an_interruption_that_a_library_renamed(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def export(*_: object, **__: object) -> None:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            except KeyboardInterrupt as error:
                raise ImportError("could not load libsomething") from error

        monkeypatch.setattr(helium_onnx, "export", export)
        assert invoke("export", "a", tmp_path).exit_code == 143


class TestProgress:
    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(0.04, "0.0 s"), (9.96, "10 s"), (99.4, "99 s"), (119.7, "2 min 00 s"), (3725, "62 min 05 s")],
    )
    def test_duration(self, seconds: float, text: str) -> None:
        assert duration(seconds) == text

    @pytest.mark.parametrize(
        ("count", "text"), [(512, "0.5 kB"), (4_813_248, "4.81 MB"), (542e6, "542 MB"), (4.34e9, "4.34 GB")]
    )
    def test_size(self, count: float, text: str) -> None:
        assert size(count) == text

    def test_plain_lines_come_every_tenth_and_at_most_each_second(self) -> None:
        lines: list[str] = []
        now = [0.0]
        progress = PlainProgress(lines.append, clock=lambda: now[0])
        for done in range(0, 1001, 5):
            progress(ProgressEvent("weights", "a", done * 10**6, 10**9))
            now[0] += 0.041
        assert [line.split()[1] for line in lines] == ["10", "20", "30", "50", "60", "70", "80", "100"]
        assert lines[0] == "weights: 10 % of 1 GB, 122 MB/s, 7.2 s left"
        assert lines[-1] == "weights: 100 % of 1 GB, 122 MB/s"

    def test_the_bar_fits_80_columns(self) -> None:
        console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
        now = [0.0]
        display = BarProgress(console, keep=True, clock=lambda: now[0])
        name = "model.layers.23.post_attention_layernorm.weight"
        display(ProgressEvent("weights", name, 0, 4_340_000_000))
        now[0] = 10.0
        display(ProgressEvent("weights", name, 1_900_000_000, 4_340_000_000))
        console.print(display._draw())
        bar, item = console.file.getvalue().splitlines()
        assert len(bar.rstrip()) <= 77
        assert "weights" in bar
        assert "43 %  1.9 GB of 4.34 GB  190 MB/s  13 s left" in bar
        assert item.strip() == name
