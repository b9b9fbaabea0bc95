"""Adapters by the command line: merged, beside the weights, converted later, and what a user does wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import invoke, run

from helium_onnx import Bundle

Bundles = Callable[[str], Bundle]


def text_of(*args: object) -> str:
    result = invoke("generate", *args, "--max-new-tokens", 8, "--json", "--quiet")
    assert result.exit_code == 0, result.output
    text: str = json.loads(result.stdout)["generations"][0]["text"]
    return text


def fails(*args: object, code: int = 1) -> str:
    """What is told: on stderr, without a traceback."""
    done = run(*args)
    assert done.returncode == code
    told = done.stderr.decode()
    assert "Traceback" not in told
    assert "error: " in told
    return told


def test_from_a_folder_of_peft_s_to_text(helium: Path, small: Path, large: Path, tmp_path: Path) -> None:
    """The two ways give the same text; without an adapter, it is another."""
    beside, merged, plain = tmp_path / "beside", tmp_path / "merged", tmp_path / "plain"
    export = ("export", helium)
    fp32 = ("--recipe", "cpu-fp32", "--quiet")
    first = invoke(*export, beside, *fp32, "--adapter-mode", "runtime", "--adapter", f"one={small}", "--adapter", large)
    assert first.exit_code == 0, first.output
    assert invoke(*export, merged, *fp32, "--adapter", large).exit_code == 0
    assert invoke(*export, plain, *fp32).exit_code == 0
    expected = text_of(merged, "Once")
    assert text_of(beside, "Once", "--adapter", "large") == expected
    assert text_of(beside, "Once", "--adapter", large) == expected
    file = tmp_path / "large.onnx_adapter"
    converted = invoke("convert-adapter", large, beside, file)
    assert converted.exit_code == 0
    assert f"--adapter {file}" in converted.stdout
    assert text_of(beside, "Once", "--adapter", file) == expected
    assert text_of(beside, "Once") == text_of(plain, "Once") != expected
    assert text_of(beside, "Once", "--adapter", "one") not in (expected, text_of(plain, "Once"))


def test_a_session_is_of_one_adapter(runtime_bundle: Bundles, tmp_path: Path) -> None:
    bundle, session = runtime_bundle("int8").path, tmp_path / "session"
    for _ in range(2):
        text_of(bundle, "Once upon a time", "--session", session, "--adapter", "small")
    told = fails("generate", bundle, "Once upon a time", "--session", session)
    assert "session of another bundle" in told


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [("french", "there is no adapter 'french'"), ("no/such.onnx_adapter", "there is no adapter")],
)
def test_an_adapter_that_is_not_there_is_told_before_the_load(
    adapter: str, expected: str, runtime_bundle: Bundles
) -> None:
    told = fails("generate", runtime_bundle("fp32").path, "Once", "--adapter", adapter, code=2)
    assert expected in told
    assert "large, small" in told
    assert "load:" not in told


def test_a_bundle_that_takes_none(plain_bundle: Bundles, small: Path) -> None:
    told = fails("generate", plain_bundle("fp32").path, "Once", "--adapter", small)
    assert "take no adapters" in told
    assert "--adapter-mode runtime" in told


def test_a_checkpoint_as_the_adapter(helium: Path, tmp_path: Path) -> None:
    told = fails("export", helium, tmp_path / "out", "--adapter", helium)
    assert "found:    a checkpoint" in told
    assert not (tmp_path / "out").exists()


def test_an_adapter_as_the_checkpoint(small: Path, tmp_path: Path) -> None:
    told = fails("export", small, tmp_path / "out")
    assert "--adapter" in told or "config.json" in told


def test_an_unknown_mode(helium: Path, small: Path, tmp_path: Path) -> None:
    told = fails("export", helium, tmp_path / "out", "--adapter", small, "--adapter-mode", "later", code=2)
    assert "merge or runtime" in told


def test_two_adapters_of_one_name(helium: Path, small: Path, large: Path, tmp_path: Path) -> None:
    told = fails("export", helium, tmp_path / "out", "--adapter-mode", "runtime",
                 "--adapter", f"a={small}", "--adapter", f"a={large}", code=2)  # fmt: skip
    assert "two adapters have the name 'a'" in told
    assert "NAME=DIR" in told


def test_validate_takes_what_was_merged(helium: Path, large: Path, tmp_path: Path) -> None:
    out, text = tmp_path / "out", tmp_path / "text.jsonl"
    page = {"text": "once upon a time the table of the era is in the an " * 12, "lang": "en"}
    text.write_text(json.dumps(page) + "\n")
    assert invoke("export", helium, out, "--recipe", "cpu-fp32", "--adapter", large, "--quiet").exit_code == 0
    with_adapter = ("validate", out, "--against", helium, "--adapter", large, "--json", "--quiet")
    report = invoke(*with_adapter, "--max-new-tokens", 4)
    assert report.exit_code == 0, report.output
    assert json.loads(report.stdout)["warning"] is None
    measured = invoke(*with_adapter, "--text", text, "--max-new-tokens", 4, "--max-kl", 1e-6)
    assert measured.exit_code == 0, measured.output
    without = invoke("validate", out, "--against", helium, "--max-new-tokens", 4, "--json", "--quiet")
    assert without.exit_code == 1
    assert "adapters/1/adapter_model.safetensors" in json.loads(without.stdout)["warning"]
