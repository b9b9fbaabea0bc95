"""Measure speculative decoding against plain decoding, on text that repeats itself and on text that does not.

    python benchmarks/speculation.py                      # helium-docs-7m, exported to out/bench; about two minutes
    python benchmarks/speculation.py --bundle OUT         # another bundle

Kinds of text, all from held-out help pages (benchmarks/data/valid.jsonl):

copied    the page, then its own beginning: what a summary or an edit of a given text looks like
continued the page's first half alone; the small model falls into its own repetitions, as greedy text does
sampled   the same at temperature 1: little repeats, so this is where drafting could only lose

Of each page plain decoding and prompt lookup run one after the other, in alternating order, from the same prefilled
prompt; tokens must be equal. Ratios are those of decoding times. Results: benchmarks/results/speculation.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import ROOT, conditions, write_results

import helium_onnx
from helium_onnx.generation.request import GenerationOptions, SpeculationChoice

PAGES, NEW, ROUNDS = 24, 200, 3


def prompts(kind: str, pages: list[str]) -> list[str]:
    """What the model is given of each page."""
    if kind == "copied":
        return [f"{page}\n\n{page[: len(page) // 8]}" for page in pages]
    return [page[: len(page) // 2] for page in pages]


def measure(model: helium_onnx.LanguageModel, kind: str, pages: list[str]) -> dict[str, Any]:
    ratios, equal, drafted, accepted, plain_tokens, plain_seconds = [], 0, 0, 0, 0, 0.0
    options: GenerationOptions = {"max_new_tokens": NEW, "ignore_eos": True}
    if kind == "sampled":
        options |= {"temperature": 1.0, "seed": 1}
    choices: tuple[SpeculationChoice, SpeculationChoice] = ("off", "auto")
    for number, prompt in enumerate(prompts(kind, pages)):
        times: dict[str, list[float]] = {"off": [], "auto": []}
        tokens: dict[str, set[tuple[int, ...]]] = {"off": set(), "auto": set()}
        for turn in range(ROUNDS):
            for choice in choices if (turn + number) % 2 else reversed(choices):
                options["speculation"] = choice
                result = model.generate(prompt, **options)
                times[choice].append(result.timings.decode_seconds)
                tokens[choice].add(result[0].token_ids)
                if choice == "auto" and result.speculation is not None:
                    drafted, accepted = drafted + result.speculation.drafted, accepted + result.speculation.accepted
        ratios.append(statistics.median(times["off"]) / statistics.median(times["auto"]))
        plain_seconds += statistics.median(times["off"])
        plain_tokens += NEW - 1
        equal += tokens["off"] == tokens["auto"] and len(tokens["off"]) == 1
    return {
        "pages": len(ratios),
        "pages_with_equal_tokens": equal,
        "ratio_median": statistics.median(ratios),
        "ratio_least": min(ratios),
        "ratio_largest": max(ratios),
        "accepted_of_drafted": accepted / drafted if drafted else None,
        "plain_ms_a_token": 1e3 * plain_seconds / plain_tokens,
    }


def export_sample(bundle: Path) -> None:
    """helium-docs-7m as cpu-int4-fast at ``bundle``, unless a bundle is there."""
    if not (bundle / "helium.json").exists():
        command = [sys.executable, "-m", "helium_onnx", "export", str(ROOT / "samples/helium-docs-7m"), str(bundle)]
        subprocess.run([*command, "--recipe", "cpu-int4-fast", "--quiet"], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure speculative decoding against plain decoding.")
    parser.add_argument("--bundle", type=Path, default=ROOT / "out/bench/docs-7m-int4-fast")
    parser.add_argument("--pages", type=int, default=PAGES)
    args = parser.parse_args()
    export_sample(args.bundle)
    texts = [json.loads(line)["text"] for line in (ROOT / "benchmarks/data/valid.jsonl").open(encoding="utf-8")]
    with helium_onnx.load(args.bundle) as model:
        fits = [text for text in texts if 800 < len(text) < 2400][: args.pages]
        threads = int(getattr(model.session, "threads", 1))
        results: dict[str, Any] = {"conditions": conditions(threads), "bundle": args.bundle.name}
        for kind in ("copied", "continued", "sampled"):
            results[kind] = found = measure(model, kind, fits)
            print(
                f"{kind:9} {found['ratio_median']:.2f} x plain decoding (pages: {found['ratio_least']:.2f} to "
                f"{found['ratio_largest']:.2f}), {found['plain_ms_a_token']:.2f} ms a token plain, equal tokens on "
                f"{found['pages_with_equal_tokens']} of {found['pages']} pages, "
                f"{found['accepted_of_drafted'] or 0:.0%} of drafted tokens accepted"
            )
    write_results(results, ROOT / "benchmarks/results/speculation.json")


if __name__ == "__main__":
    main()
