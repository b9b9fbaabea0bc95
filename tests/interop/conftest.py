"""Prompts, and what our own runtime makes of them: what every client is held against."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from model_graph import ModelGraph

import helium_onnx
from helium_onnx.evaluation.parity import PROMPTS
from helium_onnx.texts import Text, read_texts
from helium_onnx.tokenizer import Tokenizer

NEW_TOKENS = 200
TEXTS = Path(__file__).parents[2] / "benchmarks/data/valid.jsonl"


@dataclass(frozen=True)
class Ours:
    """Prompts, and their greedy tokens.

    ``alone`` and ``batch`` are our runtime's, over ONNX Runtime's kernels, ``graph_batch`` those of model.onnx with all
    prompts padded on the left. In float32 the three are the same. ONNX Runtime rounds products with quantized weights
    otherwise for one row than for several, and the graphs round attention otherwise: at close calls tokens part. So
    with quantized weights a client is held against the same rows (``alone``), or the same rows and graph.
    """

    prompts: list[list[int]]
    texts: list[str]
    alone: list[list[int]]
    alone_texts: list[str]
    batch: list[list[int]]
    graph_batch: list[list[int]]


@pytest.fixture(scope="session")
def pages() -> list[str]:
    """Held-out pages in six languages, and what they have too little of."""
    rare = ["日本語 👋 x", "a  b", "tab\tx", "\n\nx\n", "Ünïcödé ﷽ №", " leading", "x\r\ny", "e\u0301", "ﬁ", "a\u200db"]
    return [page.text for page in read_texts(TEXTS)] + rare


@pytest.fixture(scope="session")
def prompts(tokenizer: Tokenizer) -> list[str]:
    """One of each language, and a long one: of quite different lengths."""
    page: Text = max(read_texts(TEXTS)[:40], key=lambda page: len(page.text))
    long = page.text[:900].rsplit(" ", 1)[0]
    assert len(tokenizer.encode(long)) > 150
    return [*PROMPTS, long]


@pytest.fixture(scope="session")
def ours(export_sample: Callable[[str], Path], prompts: list[str]) -> Callable[[str], Ours]:
    """By a recipe's name."""

    def generate(recipe: str) -> Ours:
        with helium_onnx.load(export_sample(recipe), kernels="onnxruntime", cache=False) as model:
            ids = [model.tokenizer.encode(prompt) for prompt in prompts]
            options = {"max_new_tokens": NEW_TOKENS, "speculation": "off"}
            alone = [model.generate(prompt, **options).generations[0] for prompt in prompts]
            batch = model.generate(prompts, **options).generations
        return Ours(
            prompts=ids,
            texts=prompts,
            alone=[list(one.token_ids) for one in alone],
            alone_texts=[one.text for one in alone],
            batch=[list(one.token_ids) for one in batch],
            graph_batch=ModelGraph(export_sample(recipe)).greedy(ids, NEW_TOKENS),
        )

    return functools.cache(generate)
