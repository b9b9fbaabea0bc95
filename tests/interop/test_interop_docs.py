"""The code in docs/interop.md runs, in each client's environment, and prints our runtime's text."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from environments import CLIENTS, GENAI, OPTIMUM, TRANSFORMERS_JS, Client
from jobs import require

import helium_onnx

DOCUMENT = (Path(__file__).parents[2] / "docs/interop.md").read_text(encoding="utf-8")
PROMPT = "To insert a table in a text document,"


def code(heading: str, language: str) -> list[str]:
    """The blocks of one section that are programs of their own."""
    section = DOCUMENT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


CASES = [
    pytest.param(client, source, suffix, id=f"{client.name}-{number}")
    for client, heading, language, suffix in (
        (OPTIMUM, "optimum", "python", "py"),
        (GENAI, "onnxruntime-genai", "python", "py"),
        (TRANSFORMERS_JS, "transformers.js", "js", "mjs"),
    )
    for number, source in enumerate(code(heading, language))
]


@pytest.fixture(scope="module")
def text(sample_bundle_fp32: Path) -> str:
    with helium_onnx.load(sample_bundle_fp32) as model:
        return model.generate(PROMPT, max_new_tokens=40).generations[0].text


def test_there_is_code_for_each_client() -> None:
    assert [case.id for case in CASES] == ["optimum-0", "genai-0", "genai-1", "transformers-js-0"]
    assert all(repr(PROMPT).strip("'") in case.values[1] for case in CASES)


@pytest.mark.parametrize(("client", "source", "suffix"), CASES)
def test_it_runs(client: Client, source: str, suffix: str, sample_bundle_fp32: Path, text: str, tmp_path: Path) -> None:
    require(client)
    shutil.copytree(sample_bundle_fp32, tmp_path / "out/helium")
    (tmp_path / f"main.{suffix}").write_text(source, encoding="utf-8")
    if client is TRANSFORMERS_JS:
        (tmp_path / "node_modules").symlink_to(client.folder / "node_modules")
    done = subprocess.run(
        [client.program, f"main.{suffix}"],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip().removeprefix(PROMPT).strip() == text.strip()


def test_versions_are_those_of_the_environments() -> None:
    pins = "\n".join((CLIENTS / name / "requirements.txt").read_text() for name in ("optimum", "genai"))
    pins += (CLIENTS / "transformers-js/package.json").read_text()
    for name in (
        "optimum-onnx[onnxruntime]",
        "optimum",
        "transformers",
        "onnxruntime-genai",
        "@huggingface/transformers",
    ):
        (version,) = re.findall(rf'^\s*"?{re.escape(name)}"?(?:==|: ")([\d.]+)', pins, re.MULTILINE)
        assert f"{name}=={version}" in DOCUMENT or f"{name}@{version}" in DOCUMENT
