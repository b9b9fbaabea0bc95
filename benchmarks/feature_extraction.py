"""Vectors of help pages, beside transformers on the same cores, in one interleaved run.

    python benchmarks/feature_extraction.py                                    # 623 pages of this repository
    python benchmarks/feature_extraction.py --pages a.jsonl b.jsonl --limit 1000

helium-docs-7m, mean pooling, length 1, texts cut at the context of 2048 tokens; tokenized outside of the measured time
for transformers, inside of it for ours. Every contender runs all pages in every round, by turns; medians over the
rounds. Of transformers' three ways the one runs that is fastest over 64 pages from all over the files (every way's
tokens a second are kept in the results):

one        text by text, as its pipeline does by default
file       in batches of 16 in the order of the file, padded
sorted     the same in the order of length, which leaves little padding: as we do

Results: benchmarks/results/feature_extraction.json.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from common import ROOT, conditions, write_results
from numpy.typing import NDArray

import helium_onnx

SAMPLE = ROOT / "samples/helium-docs-7m"
RECIPES = ("cpu-fp32", "cpu-int8", "cpu-int4")
BATCH, CONTEXT, TRIED = 16, 2048, 64
Embed = Callable[[], NDArray[np.float32]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pages = [ROOT / "benchmarks/data/valid.jsonl", ROOT / "export/calibration.jsonl"]
    parser.add_argument("--pages", type=Path, nargs="+", default=pages)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/feature_extraction.json")
    options = parser.parse_args()
    texts = [json.loads(line)["text"] for file in options.pages for line in file.open(encoding="utf-8")]
    texts = texts[: options.limit]
    with tempfile.TemporaryDirectory() as temporary:
        ours = load(options.threads, Path(temporary))
        ids = [next(iter(ours.values())).tokenizer.encode(text)[:CONTEXT] for text in texts]
        reference = transformers.AutoModel.from_pretrained(SAMPLE, dtype=torch.float32).eval()
        ways = try_ways(reference, ids[:: max(1, len(ids) // TRIED)][:TRIED])
        best = max(ways, key=ways.__getitem__)
        contenders: dict[str, Embed] = {best: functools.partial(theirs, reference, ids, WAYS[best](ids))}
        for name, model in ours.items():
            contenders[name] = functools.partial(model.embed, texts, truncate=True)
        tokens = sum(map(len, ids))
        vectors = {name: embed() for name, embed in contenders.items()}  # what is slow only once, is not measured
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(options.rounds):
            for name, embed in contenders.items():
                started = time.perf_counter()
                embed()
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = {
        name: {
            "seconds": [round(value, 3) for value in seconds[name]],
            "tokens_per_second": round(tokens / medians[name]),
            "times_transformers": round(
                statistics.median(a / b for a, b in zip(seconds[best], seconds[name], strict=True)), 3
            ),
            "least_cosine": round(float((vectors[name] * vectors[best]).sum(-1).min()), 6),
            "mean_cosine": round(float((vectors[name] * vectors[best]).sum(-1).mean()), 6),
        }
        for name in contenders
    }
    results = {
        "conditions": conditions(options.threads),
        "versions": {package.__name__: package.__version__ for package in (torch, transformers, helium_onnx)},
        "pages": len(texts),
        "tokens": tokens,
        "rounds": options.rounds,
        "ways_of_transformers": ways,
        "beside": best,
        "contenders": rows,
    }
    for name, row in rows.items():
        print(
            f"{name:24}{row['tokens_per_second']:8} tokens/s {row['times_transformers']:6.2f} x  "
            f"cosine {row['least_cosine']:.6f} at least"
        )
    write_results(results, options.out)


def load(threads: int, folder: Path) -> dict[str, helium_onnx.EmbeddingModel]:
    """Our contenders; PyTorch gets as many threads."""
    torch.set_num_threads(threads)
    ours = {}
    for recipe in RECIPES:
        bundle = helium_onnx.export(SAMPLE, folder / recipe, task="feature-extraction", recipe=recipe)
        ours[f"ours, {recipe}"] = helium_onnx.load(bundle.path, task="feature-extraction", threads=threads)
    return ours


def try_ways(model: Any, ids: list[list[int]]) -> dict[str, int]:
    """Tokens a second of each of transformers' ways, the better of two runs."""
    found = {}
    for name, way in WAYS.items():
        best = 0.0
        for _ in range(2):
            started = time.perf_counter()
            theirs(model, ids, way(ids))
            best = max(best, sum(map(len, ids)) / (time.perf_counter() - started))
        found[name] = round(best)
    return found


def in_batches(order: Sequence[int], rows: int) -> list[Sequence[int]]:
    return [order[start : start + rows] for start in range(0, len(order), rows)]


WAYS: dict[str, Callable[[list[list[int]]], list[Sequence[int]]]] = {
    "transformers, one": lambda ids: in_batches(range(len(ids)), 1),
    "transformers, file": lambda ids: in_batches(range(len(ids)), BATCH),
    "transformers, sorted": lambda ids: in_batches(sorted(range(len(ids)), key=lambda row: -len(ids[row])), BATCH),
}


def theirs(model: Any, ids: list[list[int]], batches: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Mean vectors of length 1 by transformers, float32 ``[texts, hidden_size]``."""
    vectors = np.zeros((len(ids), model.config.hidden_size), np.float32)
    with torch.inference_mode():
        for batch in batches:
            longest = max(len(ids[place]) for place in batch)
            input_ids = torch.full((len(batch), longest), 3)
            mask = torch.zeros((len(batch), longest), dtype=torch.long)
            for row, place in enumerate(batch):
                input_ids[row, : len(ids[place])] = torch.tensor(ids[place])
                mask[row, : len(ids[place])] = 1
            states = model(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state
            sums = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            vectors[list(batch)] = torch.nn.functional.normalize(sums, dim=-1).numpy()
    return vectors


if __name__ == "__main__":
    main()
