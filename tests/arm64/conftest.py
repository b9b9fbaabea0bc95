"""Bundles, prompts, and what this machine and an imitated ARM64 processor make of them."""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import environment
import numpy as np
import pytest
from answers import Answer
from environment import Cpu

import helium_onnx
from helium_onnx.evaluation.parity import PROMPTS
from helium_onnx.recipe import load_recipe
from helium_onnx.texts import read_texts
from helium_onnx.tokenizer import Tokenizer

TEXTS = Path(__file__).parents[2] / "benchmarks/data/valid.jsonl"
JOB = Path(__file__).with_name("job.py")


@pytest.fixture(scope="session", autouse=True)
def arm64() -> None:
    """Skips where the environment has not been made; fails instead where HELIUM_REQUIRE_ARM64 says so."""
    if (missing := environment.missing()) is not None:
        if os.environ.get("HELIUM_REQUIRE_ARM64") == "1":
            pytest.fail(missing)
        pytest.skip(missing)


@pytest.fixture(scope="session")
def needs_kernels() -> None:
    """The same for the cross-compiled kernels alone."""
    if not environment.WITH_KERNELS.is_dir():
        missing = f"our kernels were not compiled for ARM64: there is no {environment.COMPILER}"
        if os.environ.get("HELIUM_REQUIRE_ARM64") == "1":
            pytest.fail(missing)
        pytest.skip(missing)


@pytest.fixture(scope="session")
def prompts(tokenizer: Tokenizer) -> list[str]:
    """One of each language, and a long one."""
    page = max(read_texts(TEXTS)[:40], key=lambda page: len(page.text))
    long = page.text[:900].rsplit(" ", 1)[0]
    assert len(tokenizer.encode(long)) > 150
    return [*PROMPTS, long]


@pytest.fixture(scope="session")
def fast_bundle(export_sample: Callable[[str], Path]) -> Path:
    """cpu-int4-fast: activations are rounded to 8 bits (accuracy_level 4). Tests only read it."""
    return export_sample("cpu-int4-fast")


@pytest.fixture(scope="session")
def float_bundle(sample_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cpu-int4-fast whose activations stay in float32 (accuracy_level 1)."""
    shipped = load_recipe("cpu-int4-fast")
    quantization = dataclasses.replace(shipped.quantization, accuracy_level=1)
    recipe = dataclasses.replace(shipped, name="int4-float-activations", quantization=quantization)
    return helium_onnx.export(sample_checkpoint, tmp_path_factory.mktemp("bundles") / "float", recipe=recipe).path


@pytest.fixture(scope="session")
def ask(prompts: list[str], tokenizer: Tokenizer) -> Callable[..., Answer]:
    """``ask(bundle, cpu, tokens=200, sampled=0, kernels="auto", long=False)``: greedy tokens of prompts as one batch,
    then ``sampled`` tokens of two of them, drawn with a seed; and the logits after each prompt. ``cpu`` None is this
    machine. The long prompt takes as long as the others together under emulation: it is there where asked for.
    """
    ids = [tokenizer.encode(prompt) for prompt in prompts]

    @functools.cache
    def run(
        bundle: Path, cpu: Cpu | None, *, tokens: int, sampled: int = 0, kernels: str = "auto", long: bool = False
    ) -> Answer:
        taken = len(prompts) if long else len(prompts) - 1
        requests: list[dict[str, Any]] = [{"prompts": prompts[:taken], "max_new_tokens": tokens}]
        if sampled:
            drawn = {"temperature": 0.8, "top_p": 0.95, "seed": 7}
            requests.append({"prompts": prompts[1:3], "max_new_tokens": sampled, **drawn})
        job = {"bundle": str(bundle), "kernels": kernels, "requests": requests, "logits": ids[:taken]}
        python = sys.executable if cpu is None else str(cpu.python)
        variables = None if cpu is None else environment.environment(kernels=kernels == "native")
        done = subprocess.run(
            [python, str(JOB)],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            env=variables,
            timeout=1800,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        answer = json.loads(done.stdout)
        assert answer["machine"] == ("aarch64" if cpu is not None else os.uname().machine)
        logits = np.stack([np.frombuffer(base64.b64decode(row), "<f4") for row in answer["logits"]])
        return Answer(
            answer["session"], answer["instruction_set"], answer["torch"], answer["tokens"], logits, done.stderr
        )

    return run
