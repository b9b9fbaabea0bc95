"""The command line on ARM64, as `pip install helium-onnx` leaves it there: without torch, onnx, or a compiler."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import environment
from environment import A76

from helium_onnx.evaluation.parity import PROMPTS


def helium(*arguments: object, kernels: bool = False) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(A76.python), "-m", "helium_onnx", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment.environment(kernels=kernels) | {"CXX": "no-compiler", "COLUMNS": "200"},
        cwd=environment.FOLDER,
        timeout=600,
    )


def test_generate(fast_bundle: Path) -> None:
    """A bundle with native graphs, where there are no native kernels: no word of that."""
    done = helium("generate", fast_bundle, PROMPTS[1], "--max-new-tokens", 8, "--no-cache")
    assert (done.returncode, done.stderr) == (0, "load: prefill.onnx, decode.onnx\n")
    assert len(done.stdout.split()) >= 3
    drawn = ("--max-new-tokens", 8, "--no-cache", "--temperature", 0.8, "--seed", 3, "--json")
    done = helium("generate", fast_bundle, PROMPTS[1], *drawn, kernels=True)  # plain C++ is not taken unasked
    assert (done.returncode, done.stderr) == (0, "load: prefill.onnx, decode.onnx\n")
    assert len(json.loads(done.stdout)["generations"][0]["token_ids"]) == 8


def test_native_kernels_that_are_not_there(fast_bundle: Path) -> None:
    done = helium("generate", fast_bundle, PROMPTS[1], "--kernels", "native")
    assert (done.returncode, done.stdout) == (1, "")
    assert "native kernels cannot run this" in done.stderr and "Traceback" not in done.stderr


def test_inspect(fast_bundle: Path) -> None:
    done = helium("inspect", fast_bundle, "--provider", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    graphs = json.loads(done.stdout)["graphs"]
    assert {name: (one["taken"], one["partitions"]) for name, one in graphs.items()} == {
        name: (one["nodes"], 1) for name, one in graphs.items()
    }
    assert {"prefill", "decode", "model"} <= set(graphs)


def test_verify(fast_bundle: Path) -> None:
    done = helium("verify", fast_bundle)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(line.startswith("✓") for line in done.stdout.splitlines())
    assert "not run, since this machine has no native kernels" in done.stdout


def test_doctor() -> None:
    done = helium("doctor", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["machine"]["architecture"] == "aarch64"
    runs = {recipe["recipe"]: recipe["runs"] for recipe in report["recipes"]}
    assert runs["cpu-fp32"] and runs["cpu-int8"] and runs["portable-fp32"]
    (ours,) = [one for one in report["findings"] if (one["part"], one["name"]) == ("CPU", "our kernels")]
    assert (ours["ok"], ours["remedy"]) == (None, None)
    assert "none with vector code for this processor" in ours["detail"]


def test_export_says_what_it_needs(sample_checkpoint: Path, tmp_path: Path) -> None:
    done = helium("export", sample_checkpoint, tmp_path / "out")
    assert (done.returncode, done.stdout) == (1, "")
    assert "helium-onnx[export]" in done.stderr and "Traceback" not in done.stderr
