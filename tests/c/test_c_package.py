"""A package for the desktop, built and run as its PACKAGE.md says."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from c_library import Library

import helium_onnx


@pytest.mark.slow
def test_it_builds_and_gives_the_bundles_text(library: Library, tmp_path: Path) -> None:
    app, prompt = tmp_path / "app", "To insert a table,"
    helium_onnx.package(os.environ["HELIUM_BUNDLE"], app, target="desktop")
    page = (app / "PACKAGE.md").read_text(encoding="utf-8")
    include = os.environ["HELIUM_ONNXRUNTIME_INCLUDE_DIR"]
    configure, build, run = page.split("```")[1].strip().splitlines()
    for command in (configure.replace("/path/to/onnxruntime/include", include), build):
        subprocess.run(command.split(), cwd=app, check=True, stdout=subprocess.DEVNULL)
    assert run.startswith("HELIUM_ONNXRUNTIME=/path/to/libonnxruntime.so build/samples/helium model ")
    arguments = ["build/samples/helium", "model", prompt, "--max-new-tokens", "16"]
    text = subprocess.run(arguments, cwd=app, check=True, capture_output=True, text=True).stdout
    program = Path(library.calls._name).parent / "samples/helium"
    expected = subprocess.run(
        [program, os.environ["HELIUM_BUNDLE"], *arguments[2:]], check=True, capture_output=True, text=True
    ).stdout
    assert text == expected
