"""What each way to store the weights costs: the bars, the default, and the frontier of size against loss.

    python benchmarks/quantization.py                     # helium-docs-7m: some 15 minutes on 2 cores
    python benchmarks/quantization.py --only gptq         # the rows whose name has "gptq" in it
    python benchmarks/quantization.py --calibration FILE.jsonl --calibration-tokens 100000 --only budget

Real bundles in ONNX Runtime, as users run them (activations rounded to int8 where the recipe says so), against the
PyTorch model in float32, on the first 100 pages of data/valid.jsonl that have 64 tokens, cut at 1024. The table goes
to stdout in Markdown, all figures and conditions to results/quantization.json, and the page with charts beside it
(out/quantization.html).
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common import write_results

import helium_onnx
from helium_onnx.evaluation.report import FidelityReport
from helium_onnx.recipe import Bits, BlockSize, MatrixSettings, Method, Precision, Quantization, Recipe, load_recipe

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "samples/helium-docs-7m"
TEXT = ROOT / "benchmarks/data/valid.jsonl"
RESULTS = ROOT / "benchmarks/results/quantization.json"
#: ln(perplexity ratio), mean KL divergence and same-top-1 rate that a recipe is to reach.
BARS = {
    "cpu-fp32": (1e-5, 1e-7, 1.0),
    "cpu-int8": (0.0005, 0.0005, 0.99),
    "cpu-int4": (0.012, 0.015, 0.935),
}


@dataclass(frozen=True)
class Row:
    name: str
    recipe: Recipe
    budget: str | None = None
    calibrated: bool = False


def alike(method: Method, bits: Bits, block_size: BlockSize, symmetric: bool, tokens: int) -> Recipe:
    """All matrices stored in one way."""
    settings = MatrixSettings(bits, block_size, symmetric, "float16")
    return Recipe(
        f"{method}-{bits}-{block_size}-{'sym' if symmetric else 'zp'}",
        summary="one point of the frontier",
        quantization=Quantization(
            method, calibration_tokens=tokens, linear=settings, head=settings, embedding=settings
        ),
    )


def rows(tokens: int) -> Iterator[Row]:
    """All that is measured; ``tokens`` of calibration text, 0 for the default."""

    def shipped(name: str) -> Recipe:
        recipe = load_recipe(name)
        return dataclasses.replace(
            recipe, quantization=dataclasses.replace(recipe.quantization, calibration_tokens=tokens)
        )

    yield Row("cpu-fp32", load_recipe("cpu-fp32"))
    yield Row("cpu-int8", shipped("cpu-int8"), calibrated=True)
    yield Row("cpu-int4", shipped("cpu-int4"), calibrated=True)
    methods: tuple[Method, ...] = ("round-to-nearest", "hqq", "k-quant", "gptq")
    forms: tuple[tuple[BlockSize, bool], ...] = ((32, True), (64, False), (128, False))
    for block_size, symmetric in forms:
        for method in methods:
            if method != "hqq" or block_size == 64:
                kind = "sym" if symmetric else "zp"
                recipe = alike(method, 4, block_size, symmetric, tokens)
                yield Row(f"{method} 4 bits/{block_size} {kind}", recipe, calibrated=method == "gptq")
    for bits in ("4.6", "4.8", "5.0", "5.3"):
        yield Row(f"gptq budget {bits} bits", shipped("cpu-int4"), budget=f"{bits}bits", calibrated=True)
    yield Row("gptq 2 bits/32 zp", alike("gptq", 2, 32, False, tokens), calibrated=True)
    for cache in ("float16", "int8"):
        precision = Precision(key_value_cache=cache)
        recipe = dataclasses.replace(load_recipe("cpu-fp32"), precision=precision)
        yield Row(f"cpu-fp32, {cache} keys and values", recipe)


def export(row: Row, out: Path, calibration: Path | None) -> float:
    """Make the bundle; seconds that it took."""
    started = time.monotonic()
    text = calibration if row.calibrated else None
    helium_onnx.export(CHECKPOINT, out, recipe=row.recipe, calibration=text, budget=row.budget)
    return time.monotonic() - started


def line(row: Row, report: FidelityReport, seconds: float) -> str:
    figures = report.figures
    loss, divergence, same = figures.ln_ratio.value, figures.kl.value, figures.same_top1.value
    bar = ""
    if row.name in BARS:
        ln, kl, top1 = BARS[row.name]
        kept = (loss <= ln, divergence <= kl, same >= top1)
        bar = ", ".join(f"{name} {'yes' if ok else 'NO'}" for name, ok in zip(("ln", "KL", "top-1"), kept, strict=True))
    return (
        f"| {row.name} | {report.storage.bits_per_weight['all']:.2f} | {loss:.5f} | {divergence:.5f} "
        f"| {100 * same:.2f} % | {seconds:.0f} s | {bar} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--calibration", type=Path, help="JSON Lines; default: the shipped text")
    parser.add_argument("--calibration-tokens", type=int, default=0, help="default: as the model's size allows")
    arguments = parser.parse_args()
    chosen = [row for row in rows(arguments.calibration_tokens) if arguments.only in row.name]
    print("| recipe | bits a weight | ln(ppl ratio) | mean KL | same top-1 | export | bar |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / f"{i:02} {row.name.replace('/', '-')}" for i, row in enumerate(chosen)]
        seconds = [export(row, out, arguments.calibration) for row, out in zip(chosen, outs, strict=True)]
        comparison = helium_onnx.compare(outs, against=CHECKPOINT, text=TEXT)
        for row, report, taken in zip(chosen, comparison.reports, seconds, strict=True):
            print(line(row, report, taken), flush=True)
        page = ROOT / "out/quantization.html"
        page.parent.mkdir(exist_ok=True)
        comparison.write_html(page)
    if arguments.only or arguments.calibration:
        return
    records = [
        {
            "name": row.name,
            "budget": row.budget,
            "export_seconds": round(taken, 1),
            "figures": report.to_dict()["figures"],
            "storage": report.to_dict()["storage"],
        }
        for row, report, taken in zip(chosen, comparison.reports, seconds, strict=True)
    ]
    conditions = comparison.reports[0].to_dict()["conditions"]
    conditions |= {"against": "samples/helium-docs-7m", "text": "benchmarks/data/valid.jsonl"}
    write_results({"conditions": conditions, "rows": records}, RESULTS)


if __name__ == "__main__":
    main()
