"""helium-onnx generate, as users meet it: texts, streams, exit codes, signals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import PROGRAM, assert_plain, invoke, on_terminal, run, start

import helium_onnx

PROMPT = "To insert a table"


@pytest.fixture(scope="module")
def expected(sample_bundle: Path) -> str:
    """Sixteen greedy tokens after PROMPT."""
    with helium_onnx.load(sample_bundle) as model:
        return model.generate(PROMPT, max_new_tokens=16).text


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
        drafts = r"([\d.]+ tokens a step \(\d+ of \d+ drafted\), )?"  # if it found a repetition worth it
        speed = r"16 tokens, [\d.]+ tokens/s, first token [\d.]+ s, "
        assert re.fullmatch(rf"{speed}{drafts}finish reason length\n", result.stderr)

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
        slow = ("--kernels", "onnxruntime", "--speculation", "off")  # native kernels are done before the signal comes
        args = ("generate", sample_bundle, PROMPT, "--max-new-tokens", 1500, "--ignore-eos", "--json", *slow)
        reasons = []
        for delay in (0.4, 0.8, 0.2, 1.6, 0.1):  # the signal may come in the load, or after the end: machines differ
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
