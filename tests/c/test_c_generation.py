"""The command-line sample beside Python, over the same bundle."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from c_library import Library

import helium_onnx

PROMPTS = ["To insert a table into a text document,", "Pour enregistrer un document,", "日本 👍🏽 </s>"]
OPTIONS = [
    {},
    {"temperature": 0.8, "top_p": 0.95, "seed": 11},
    {"temperature": 1.1, "top_k": 30, "min_p": 0.02, "repetition_penalty": 1.1, "seed": 2**63 + 5},
]


@pytest.mark.parametrize("variable", ["HELIUM_BUNDLE", "HELIUM_BUNDLE_FP32"])
def test_the_samples_tokens_are_pythons(variable: str, library: Library) -> None:
    """Over our kernels, which both run (int4), and over ONNX Runtime's (float32)."""
    bundle = Path(os.environ[variable])
    program = Path(library.calls._name).parent / "samples/helium"
    model = helium_onnx.load(bundle)
    for prompt in PROMPTS:
        for options in OPTIONS:
            flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
            command = [str(program), str(bundle), prompt, "--ids", "--max-new-tokens", "40", *flags]
            ended = subprocess.run(command, capture_output=True, text=True, check=True)
            [made] = model.generate(prompt, max_new_tokens=40, **options).generations
            assert [int(line) for line in ended.stdout.split()] == list(made.token_ids), (prompt, options)
    model.close()


def test_what_the_sample_says(library: Library, tmp_path: Path) -> None:
    """Wrong paths, options and a pipe that closes: an error in words and a code, or an end."""
    program = str(Path(library.calls._name).parent / "samples/helium")
    bundle = os.environ["HELIUM_BUNDLE"]

    def run(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *arguments], capture_output=True, text=True, input=text, check=False)

    for arguments, code, said in (
        ((), 2, "no bundle"),
        ((bundle,), 2, "no prompt"),
        ((bundle, "a", "b"), 2, "one prompt too many"),
        ((bundle, "a", "--top-k", "x"), 2, "--top-k cannot be x"),
        ((bundle, "a", "--what", "1"), 2, "no such option: --what"),
        ((bundle, "a", "--temperature", "-1"), 1, "temperature has a value that it cannot have"),
        ((str(tmp_path), "a"), 1, "has no helium.json"),
        ((str(tmp_path / "none"), "a"), 1, "there is no folder"),
        ((bundle, "a", "--onnxruntime", "/none.so"), 1, "ONNX Runtime cannot be opened"),
        ((bundle, "a", "--context", "4", "--max-new-tokens", "1", "--stop", ""), 1, "a stop string cannot be used"),
    ):
        ended = run(*arguments)
        assert (ended.returncode, said in ended.stderr, ended.stdout) == (code, True, ""), ended
    assert run("--help").stdout.startswith("usage: helium BUNDLE PROMPT")
    assert run("--version").stdout.split()[0] == "helium"
    assert "in all" in run(bundle, "--plan").stdout
    assert run(bundle, "-", "--max-new-tokens", "4", text="To insert").stdout.strip()
    session = tmp_path / "session"
    first = run(bundle, "To insert", "--max-new-tokens", "8", "--session", str(session), "--ids").stdout
    second = run(bundle, " then", "--max-new-tokens", "8", "--session", str(session), "--ids").stdout
    assert len(first.split()) == len(second.split()) == 8
    reader = subprocess.Popen(
        [program, bundle, "Save", "--max-new-tokens", "2000", "--ignore-eos"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert reader.stdout is not None
    assert reader.stdout.read(10)
    reader.stdout.close()
    assert reader.wait(60) != 0
