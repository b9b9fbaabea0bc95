"""A bundle in optimum: greedy, beams, padded batches and pipelines, beside our runtime and transformers' own Helium."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import NEW_TOKENS, Ours
from environments import OPTIMUM
from jobs import run_script

GREEDY = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
BEAMS = {"max_new_tokens": 48, "num_beams": 4, "do_sample": False}
BEAM_PROMPTS = slice(2, None, 2)  # some of them: transformers takes a minute for all


@dataclass(frozen=True)
class Answers:
    alone: list[list[int]]
    batch: list[list[int]]
    beams: list[list[int]]
    pipeline: str


def requests(ours: Ours) -> list[dict[str, Any]]:
    beams = {"kind": "generate", "prompts": ours.prompts[BEAM_PROMPTS], "options": BEAMS}
    return [
        beams,
        {"kind": "generate", "prompts": ours.prompts, "options": GREEDY},
        {"kind": "pipeline", "text": ours.texts[1], "options": GREEDY},
        *({"kind": "generate", "prompts": [prompt], "options": GREEDY} for prompt in ours.prompts),
    ]


@pytest.fixture(scope="module", params=["cpu-fp32", "cpu-int4"])
def recipe(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def answers(recipe: str, ours: Callable[[str], Ours], export_sample: Callable[[str], Path]) -> Answers:
    job = {"model": str(export_sample(recipe)), "library": "optimum", "requests": requests(ours(recipe))}
    beams, batch, text, *alone = run_script(OPTIMUM, "client.py", job)
    return Answers([one for (one,) in alone], batch, beams, text)


def test_greedy(answers: Answers, recipe: str, ours: Callable[[str], Ours]) -> None:
    assert answers.alone == ours(recipe).alone
    assert [len(tokens) for tokens in answers.alone].count(NEW_TOKENS) >= 6


def test_batch_padded_on_the_left(answers: Answers, recipe: str, ours: Callable[[str], Ours]) -> None:
    assert answers.batch == ours(recipe).graph_batch


def test_rows_of_a_batch_are_each_prompt_alone_in_float32(
    recipe: str, answers: Answers, ours: Callable[[str], Ours]
) -> None:
    if recipe != "cpu-fp32":
        pytest.skip("ONNX Runtime rounds otherwise for one row than for several by quantized weights")
    assert answers.batch == answers.alone
    assert ours(recipe).batch == ours(recipe).graph_batch == ours(recipe).alone


def test_beams_are_those_of_transformers(
    recipe: str, answers: Answers, ours: Callable[[str], Ours], sample_checkpoint: Path
) -> None:
    if recipe != "cpu-fp32":
        pytest.skip("transformers has no such weights; tests/interop/test_genai.py compares two clients")
    job = {"model": str(sample_checkpoint), "library": "transformers", "requests": requests(ours(recipe))[:1]}
    (theirs,) = run_script(OPTIMUM, "client.py", job)
    assert answers.beams == theirs
    assert answers.beams != [tokens[:48] for tokens in answers.batch[BEAM_PROMPTS]]  # it searched


def test_pipeline(answers: Answers, recipe: str, ours: Callable[[str], Ours]) -> None:
    assert answers.pipeline == ours(recipe).texts[1] + ours(recipe).alone_texts[1]


def test_tokenizer(sample_bundle_fp32: Path, pages: list[str], tokenizer: Any) -> None:
    job = {
        "model": str(sample_bundle_fp32),
        "library": "optimum",
        "requests": [{"kind": "encode", "texts": pages}],
    }
    (ids,) = run_script(OPTIMUM, "client.py", job)
    assert ids == [tokenizer.encode(page) for page in pages]
