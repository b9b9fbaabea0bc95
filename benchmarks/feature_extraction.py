"""Vectors of help pages, beside transformers on the same cores, in one interleaved run.

    python benchmarks/feature_extraction.py                                    # 623 pages of this repository
    python benchmarks/feature_extraction.py --pages a.jsonl b.jsonl --limit 1000

helium-docs-7m, mean pooling, length 1, texts cut at the context of 2048 tokens; tokenized outside of the measured time
for transformers, inside of it for ours. Every contender runs all pages in every round, by turns; medians over the
rounds. transformers runs three ways, and is compared by its fastest:

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
BATCH, CONTEXT = 16, 2048
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
        contenders, ids = load(texts, options.threads, Path(temporary))
        tokens = sum(map(len, ids))
        vectors = {name: embed() for name, embed in contenders.items()}  # what is slow only once, is not measured
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(options.rounds):
            for name, embed in contenders.items():
                started = time.perf_counter()
                embed()
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    best = min((name for name in medians if name.startswith("transformers")), key=medians.__getitem__)
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
        "beside": best,
        "contenders": rows,
    }
    for name, row in rows.items():
        print(
            f"{name:24}{row['tokens_per_second']:8} tokens/s {row['times_transformers']:6.2f} x  "
            f"cosine {row['least_cosine']:.6f} at least"
        )
    write_results(results, options.out)


def load(texts: Sequence[str], threads: int, folder: Path) -> tuple[dict[str, Embed], list[list[int]]]:
    """The contenders, and the tokens of each text."""
    torch.set_num_threads(threads)
    contenders: dict[str, Embed] = {}
    ids: list[list[int]] = []
    ours = []
    for recipe in RECIPES:
        bundle = helium_onnx.export(SAMPLE, folder / recipe, task="feature-extraction", recipe=recipe)
        model = helium_onnx.load(bundle.path, task="feature-extraction", threads=threads)
        ids = ids or [model.tokenizer.encode(text)[:CONTEXT] for text in texts]
        ours.append((f"ours, {recipe}", model))
    reference = transformers.AutoModel.from_pretrained(SAMPLE, dtype=torch.float32).eval()
    in_file = list(range(len(ids)))
    by_length = sorted(in_file, key=lambda place: -len(ids[place]))
    for name, order, rows in (("one", in_file, 1), ("file", in_file, BATCH), ("sorted", by_length, BATCH)):
        batches = [order[start : start + rows] for start in range(0, len(order), rows)]
        contenders[f"transformers, {name}"] = functools.partial(theirs, reference, ids, batches)
    for name, model in ours:
        contenders[name] = functools.partial(model.embed, texts, truncate=True)
    return contenders, ids


def theirs(model: Any, ids: list[list[int]], batches: list[list[int]]) -> NDArray[np.float32]:
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
            vectors[batch] = torch.nn.functional.normalize(sums, dim=-1).numpy()
    return vectors


if __name__ == "__main__":
    main()
