"""A bundle in onnxruntime-genai: greedy and beams, over model.onnx and as a pipeline of two graphs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import NEW_TOKENS, Ours
from environments import GENAI, OPTIMUM
from jobs import run_script

from helium_onnx.tokenizer import Tokenizer

GREEDY = {"max_new_tokens": NEW_TOKENS}
#: Scored by the sum of logarithms. With a length_penalty onnxruntime-genai divides by a power of all tokens, the prompt
#: included, transformers by that of the new ones alone: so they prefer other beams where one has ended.
BEAMS = {"max_new_tokens": 48, "num_beams": 4, "length_penalty": 0.0, "early_stopping": True}
EOS = 2
PIPELINE = {"model": {"type": "decoder-pipeline"}}


@pytest.fixture(scope="module", params=["cpu-fp32", "cpu-int4", "portable-fp32"])
def recipe(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(recipe: str, ours: Callable[[str], Ours], export_sample: Callable[[str], Path]) -> Any:
    """Greedy tokens and beams, over model.onnx."""
    job = {"model": str(export_sample(recipe)), "prompts": ours(recipe).prompts, "options": [GREEDY, BEAMS]}
    return run_script(GENAI, "client.py", job)


def test_greedy(whole: Any, recipe: str, ours: Callable[[str], Ours]) -> None:
    assert whole[0] == ours(recipe).alone
    assert [len(tokens) for tokens in whole[0]].count(NEW_TOKENS) >= 6


def test_beams_are_those_of_optimum(
    recipe: str,
    ours: Callable[[str], Ours],
    export_sample: Callable[[str], Path],
    tokenizer: Tokenizer,
    pages: list[str],
) -> None:
    """Of which tests/interop/test_optimum.py says that they are transformers' own."""
    prompts = [ours(recipe).prompts[1], *(tokenizer.encode(pages[number][:300]) for number in (50, 52))]
    bundle = str(export_sample(recipe))
    options = {**BEAMS, "do_sample": False}
    alone = [{"kind": "generate", "prompts": [prompt], "options": options} for prompt in prompts]
    answer = run_script(OPTIMUM, "client.py", {"model": bundle, "library": "optimum", "requests": alone})
    theirs = [tokens for (tokens,) in answer]
    greedy, beams = run_script(GENAI, "client.py", {"model": bundle, "prompts": prompts, "options": [GREEDY, BEAMS]})
    ended = [tokens[-1] == EOS for tokens in theirs]
    assert any(ended)
    assert not all(ended)
    # It leaves the eos of a beam out.
    assert beams == [tokens[:-1] if end else tokens for tokens, end in zip(theirs, ended, strict=True)]
    assert beams != [tokens[:48] for tokens in greedy]  # it searched


def test_pipeline(
    whole: Any, recipe: str, ours: Callable[[str], Ours], export_sample: Callable[[str], Path], tmp_path: Path
) -> None:
    """Without model.onnx in the folder, so that nothing else can have answered; and each graph is needed."""
    bundle = shutil.copytree(export_sample(recipe), tmp_path / "bundle")
    (bundle / "onnx/model.onnx").unlink()
    job = {"model": str(bundle), "overlay": PIPELINE, "prompts": ours(recipe).prompts, "options": [GREEDY, BEAMS]}
    greedy, beams = run_script(GENAI, "client.py", job)
    assert greedy == ours(recipe).alone
    assert beams == whole[1]
    for graph in ("prefill", "decode"):
        away = (bundle / f"onnx/{graph}.onnx").rename(tmp_path / "away")
        with pytest.raises(RuntimeError, match=rf"{graph}\.onnx"):
            run_script(GENAI, "client.py", job)
        away.rename(bundle / f"onnx/{graph}.onnx")
