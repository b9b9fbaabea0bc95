"""helium-onnx package, as users meet it: texts, streams, exit codes."""

from __future__ import annotations

import inspect
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from command_line import assert_plain, invoke, names_in, on_terminal, run

import helium_onnx
from helium_onnx import cli
from helium_onnx.bundle import Bundle
from helium_onnx.packaging import TARGETS


def test_for_the_web(sample_bundle_fp32: Path, tmp_path: Path) -> None:
    dest = tmp_path / "a package"
    done = run("package", sample_bundle_fp32, dest, "--for", "web")
    assert done.returncode == 0, done.stderr
    name = re.escape(str(dest))
    summary = rf"{name}: [\d.]+ MB in .* s\. Next: put the folder on a server, .*; contextLength 2048 at most\n"
    assert re.fullmatch(summary, done.stdout.decode())
    stages = [line.split(":")[0] for line in done.stderr.decode().splitlines()]
    assert list(dict.fromkeys(stages)) == ["verify", "copy", "finish"]
    assert_plain(done.stderr)
    assert names_in(tmp_path) == ["a package"]
    again = run("package", sample_bundle_fp32, dest, "--for", "web", "-q")
    assert again.returncode == 1
    assert (
        again.stderr.decode() == f"error: {dest} exists.\n  remedy:   --force replaces it; or choose another target\n"
    )
    assert run("package", sample_bundle_fp32, dest, "--for", "web", "-q", "--force").stderr == b""


def test_on_a_terminal(sample_bundle_fp32: Path, tmp_path: Path) -> None:
    code, shown = on_terminal("package", sample_bundle_fp32, tmp_path / "p", "--for", "web")
    assert code == 0
    for stage in ("verify", "copy", "finish"):
        assert re.search(rf"✓.*{stage} ", shown)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["BUNDLE", "OUT"], 2, "--for"),
        (["BUNDLE", "--for", "web"], 2, "DEST"),
        (["BUNDLE", "OUT", "--for", "phone"], 2, "expected: one of android-qnn, web, optimum"),
        (["BUNDLE", "OUT", "--for", "web", "--soc", "75/57"], 2, "the target web has no --soc"),
        (["BUNDLE", "OUT", "--for", "web", "--unshared"], 2, "the target web has no --unshared"),
        (["BUNDLE", "BUNDLE", "--for", "web", "--force"], 2, "a folder apart from the bundle"),
        (["BUNDLE", "OUT", "--for", "android-qnn", "--soc", "75/57"], 1, "--recipe qnn-int4"),
        (["OUT", "DEST", "--for", "web"], 1, "There is no folder"),
    ],
)
def test_errors(args: list[str], code: int, message: str, sample_bundle_fp32: Path, tmp_path: Path) -> None:
    names = {"BUNDLE": sample_bundle_fp32, "OUT": tmp_path / "p", "DEST": tmp_path / "q"}
    result = invoke("package", *(names.get(arg, arg) for arg in args))
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert names_in(tmp_path) == []


def test_the_command_is_the_function() -> None:
    ours = inspect.signature(cli.package).parameters
    for name, theirs in inspect.signature(helium_onnx.package).parameters.items():
        option = {"path": "out"}.get(name, name)
        if name != "progress":
            assert ours[option].default == theirs.default, name


def test_help_names_the_targets() -> None:
    shown = invoke("package", "--help").stdout
    assert "|".join(TARGETS) in shown
    assert max(map(len, run("package", "--help", env={"COLUMNS": "80"}).stdout.decode().splitlines())) <= 80


@pytest.mark.skipif(find_spec("onnxruntime_qnn") is None, reason="onnxruntime-qnn is not installed")
def test_for_android(sample_checkpoint: Path, tmp_path: Path) -> None:
    """From the checkpoint to the package in the commands that docs/qnn.md gives."""
    bundle, dest = tmp_path / "bundle", tmp_path / "phone"
    assert run("export", sample_checkpoint, bundle, "-r", "qnn-fp16", "--context", "256", "-q").returncode == 0
    done = run("package", bundle, dest, "--for", "android-qnn", "--soc", "sm8750")
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().endswith("a device with Snapdragon 8 Elite (SM8750); see docs/qnn.md\n")
    lines = done.stderr.decode().splitlines()
    assert [line for line in lines if line.startswith("compile")] == ["compile: prefill.onnx", "compile: decode.onnx"]
    assert_plain(done.stdout + done.stderr)
    slots = {spec.dims[2] for spec in Bundle.open(dest).manifest.graphs["decode"].inputs if spec.name.endswith(".key")}
    assert slots == {256}


def test_one_export_for_each_context(sample_checkpoint: Path, tmp_path: Path) -> None:
    for args, message in (
        (["-r", "qnn-fp16", "--context", "4096"], "2048 at most, the model's max_position_embeddings"),
        (["-r", "qnn-fp16", "--context", "1000"], "a multiple of 128"),
        (["-r", "qnn-fp16", "--context", "64"], "a multiple of 128"),
        (["-r", "qnn-fp16", "--context", "-128"], "a multiple of 128"),
        (["-r", "cpu-fp32", "--context", "1024"], "a recipe that fixes one: "),
    ):
        result = invoke("export", sample_checkpoint, tmp_path / "b", *args)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr
    assert names_in(tmp_path) == []
