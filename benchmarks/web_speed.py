"""Measure bundles in a browser, on WebAssembly, beside transformers.js in the same page.

    make interop web                        # transformers.js in out/clients, @helium-onnx/web in runtimes/web/dist
    python benchmarks/web_speed.py          # some minutes; helium-docs-7m, exported to a temporary folder

All contenders are loaded in one page of headless Chromium and take turns, on the same number of threads, with the same
greedy tokens; medians over the rounds. Times are those of the page: ours computes in a worker and takes text, so
messages and its tokenizer are in them; transformers.js computes on the page's thread and is given ids. Bundles with
quantized weights are left out there: its own build of ONNX Runtime does not load them (docs/interop.md).

decode    tokens a second after the first of a short prompt
prefill   tokens a second of a prompt, until its first new token is there
load      in a browser that has run nothing yet, from a server on this machine: WebAssembly's compilation is in it
memory    resident, of the page's process: its peak during a load and one text, less what it was before

Results: benchmarks/results/web.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from common import ROOT, conditions, write_results

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.loading import load_tokenizer
from helium_onnx.tokenizer import Tokenizer

RECIPES = ("cpu-fp32", "cpu-int8", "cpu-int4")
SHORT = "Pour insérer un tableau dans un document texte,"
LONG_TOKENS = 512
COUNT = 64
CONTENDERS: tuple[dict[str, Any], ...] = (
    {"name": "transformers.js, cpu-fp32", "kind": "transformersJs", "bundle": "/bundles/cpu-fp32"},
    {"name": "ours, cpu-fp32", "kind": "ours", "bundle": "/bundles/cpu-fp32"},
    {"name": "ours, cpu-int8", "kind": "ours", "bundle": "/bundles/cpu-int8"},
    {"name": "ours, cpu-int4", "kind": "ours", "bundle": "/bundles/cpu-int4"},
    {"name": "ours, cpu-int8 left as it is", "kind": "ours", "bundle": "/bundles/cpu-int8", "expandWeights": False},
    {"name": "ours, cpu-int4 left as it is", "kind": "ours", "bundle": "/bundles/cpu-int4", "expandWeights": False},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=Path, help="a folder that has, or gets, the exports; else a temporary one")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--loads", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--browser", default="/usr/bin/chromium")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/web.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        bundles: Path = options.bundles or Path(temporary)
        for recipe in RECIPES:
            if not (bundles / recipe / "helium.json").exists():
                helium_onnx.export(ROOT / "samples/helium-docs-7m", bundles / recipe, recipe=recipe)
        job = {
            "browser": options.browser,
            "modules": str(ROOT / "out/clients/transformers-js/node_modules"),
            "package": str(ROOT / "runtimes/web/dist"),
            "bundles": str(bundles),
            "prompts": prompts(load_tokenizer(Bundle.open(bundles / "cpu-fp32"))),
            "count": COUNT,
            "rounds": options.rounds,
            "loads": options.loads,
        }
        results: dict[str, Any] = {"conditions": conditions(max(options.threads)), "versions": versions(job)}
        results["rounds"], results["decoded_tokens"] = options.rounds, COUNT
        results["prompt_tokens"] = {name: len(prompt["ids"]) for name, prompt in job["prompts"].items()}
        results["download_bytes"] = {recipe: download_bytes(bundles / recipe) for recipe in RECIPES}
        results["threads"] = {}
        for threads in options.threads:
            measured = measure({**job, "contenders": [{**one, "threads": threads} for one in CONTENDERS]})
            results["versions"]["chromium"] = measured["browser"]
            results["threads"][str(threads)] = figures(measured["contenders"], results["prompt_tokens"])
            print(table(threads, results["threads"][str(threads)]), flush=True)
            write_results(results, options.out)


def prompts(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """``short`` and ``long``, each with its text and ids; ``long`` is the beginning of an evaluation text."""
    with (ROOT / "benchmarks/data/valid.jsonl").open(encoding="utf-8") as lines:
        text = next(text for text in (json.loads(line)["text"] for line in lines) if len(text) > 6 * LONG_TOKENS)
    while len(tokenizer.encode(text)) > LONG_TOKENS:
        text = text[:-1]
    return {name: {"text": text, "ids": tokenizer.encode(text)} for name, text in (("short", SHORT), ("long", text))}


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """What web_page.js measures. Raises CalledProcessError, with what the page said on standard error."""
    command = ["node", str(ROOT / "benchmarks/workers/web_page.js")]
    output = subprocess.run(command, input=json.dumps(job), stdout=subprocess.PIPE, text=True, check=True).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    for recipe in RECIPES:
        # The same weights give the same tokens, whoever runs them.
        texts = [
            [[times[part]["tokens"] for part in sorted(times)] for times in result["contenders"][one["name"]]["rounds"]]
            for one in CONTENDERS
            if one["bundle"].endswith(recipe)
        ]
        if any(text != texts[0] for text in texts):
            raise RuntimeError(f"contenders differ in their tokens on {recipe}")
    return result


def figures(contenders: dict[str, Any], prompt_tokens: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Medians for each contender, and the decode speed of every round."""
    rows = {}
    for name, contender in contenders.items():
        rounds, alone = contender["rounds"], contender["alone"]
        decode = [1e3 * (COUNT - 1) / (one["short_all"]["ms"] - one["short_first"]["ms"]) for one in rounds]
        prefill = [1e3 * prompt_tokens["long"] / one["long_first"]["ms"] for one in rounds]
        memory = [(one["peak_bytes"] - one["before_bytes"]) * 1e-6 for one in alone]
        rows[name] = {
            "decode_tokens_per_second": round(statistics.median(decode), 1),
            "decode_tokens_per_second_of_rounds": [round(value, 1) for value in decode],
            "prefill_tokens_per_second": round(statistics.median(prefill), 1),
            "time_to_first_token_ms": round(statistics.median(one["short_first"]["ms"] for one in rounds), 1),
            "load_ms": round(statistics.median(one["load_ms"] for one in alone)),
            "memory_mb": round(statistics.median(memory)),
        }
    return rows


def download_bytes(bundle: Path) -> int:
    """Of the files that @helium-onnx/web fetches."""
    files = ("helium.json", "tokenizer.json", "onnx/prefill.onnx", "onnx/model.onnx_data")
    return sum((bundle / name).stat().st_size for name in files)


def versions(job: dict[str, Any]) -> dict[str, str]:
    modules = Path(job["modules"])
    found = {
        "transformers.js": modules / "@huggingface/transformers",
        "onnxruntime-web of transformers.js": modules / "onnxruntime-web",
        "onnxruntime-web of @helium-onnx/web": ROOT / "runtimes/web/node_modules/onnxruntime-web",
    }
    return {name: json.loads((folder / "package.json").read_text())["version"] for name, folder in found.items()}


def table(threads: int, rows: dict[str, dict[str, Any]]) -> str:
    lines = [f"{f'{threads} thread(s)':32} decode/s  prefill/s  first ms  load ms  memory MB"]
    for name, row in rows.items():
        lines.append(
            f"{name:32} {row['decode_tokens_per_second']:8.0f}  {row['prefill_tokens_per_second']:9.0f}  "
            f"{row['time_to_first_token_ms']:8.1f}  {row['load_ms']:7.0f}  {row['memory_mb']:9.0f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
