"""Size and peak memory of every recipe's bundle in the shapes of helium-1-preview-2b, and of its packages.

    python benchmarks/packages.py                      # all of it: about 30 minutes and 15 GB of disk
    python benchmarks/packages.py cpu-int4 qnn-int4    # some recipes

A random checkpoint is made in ``--work`` if it is not there. Weights are chosen by rounding, where the recipe asks for
GPTQ: sizes are the same, and hours are saved. What runs on a CPU generates 8 tokens after a prompt of some 30 in a
process of its own: its peak is that of resident memory, mapped pages of the weights included. Results go to
``benchmarks/results/packages.json`` with their conditions.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import ROOT, conditions, make_checkpoint, timed, write_results

from helium_onnx.recipe import Recipe, list_recipes
from helium_onnx.runtimes.providers import default_threads

#: Targets of ``helium-onnx package`` for the bundles of each recipe, with their options.
PACKAGES: dict[str, tuple[tuple[str, ...], ...]] = {
    "cpu-int4": (("web",),),
    "cpu-int8": (("web",),),
    "qnn-int4": (("android-qnn", "--soc", "75/57"),),  # needs onnxruntime-qnn, and 16 GB of memory
}
#: Some thirty tokens.
PROMPT = " ".join(["The quick brown fox jumps over the lazy dog."] * 3)
CONTEXTS = (1024, 2048, 4096)


def main() -> None:
    names = [recipe.name for recipe in list_recipes()]
    parser = argparse.ArgumentParser(description="Measure the bundles of a 2 B model.")
    parser.add_argument("recipes", nargs="*", default=names, help=", ".join(names))
    parser.add_argument("--work", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    work: Path = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    make_checkpoint(work / "h2b")
    path = ROOT / "benchmarks/results/packages.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"recipes": {}}
    results["conditions"] = conditions(default_threads())
    for recipe in list_recipes():
        if recipe.name in args.recipes:
            results["recipes"][recipe.name] = measure(recipe, work)
            print(recipe.name, json.dumps(results["recipes"][recipe.name]), flush=True)
            write_results(results, path)
    print(table(results["recipes"]))


def table(recipes: dict[str, Any]) -> str:
    """As docs/targets.md has it. GB are 10^9 bytes, MB 10^6."""
    lines = [
        "| recipe | bundle | packages | export: time, peak | run: peak memory | keys and values of 4096 tokens |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in sorted(recipes.items()):
        packages = ", ".join(f"{target}: {p['bytes'] / 1e9:.2f} GB" for target, p in found.get("packages", {}).items())
        run = f"{found['run']['peak_resident_mb'] / 1e3:.1f} GB" if "run" in found else ""
        lines.append(
            f"| `{name}` | {found['bundle_bytes'] / 1e9:.2f} GB | {packages} | {found['export']['seconds']:.0f} s, "
            f"{found['export']['peak_resident_mb']:.0f} MB | {run} | {found['key_value_bytes']['4096'] / 1e9:.2f} GB |"
        )
    return "\n".join(lines)


def measure(recipe: Recipe, work: Path) -> dict[str, Any]:
    """Export, run where a CPU has the kernels, and package; one bundle at a time is on disk."""
    out, log = work / "package", work / "packages.log"
    program = [sys.executable, "-m", "helium_onnx"]
    found: dict[str, Any] = {
        "export": timed([*program, "export", str(work / "h2b"), str(out), "--force", "-r", rounded(recipe, work)], log),
        "bundle_bytes": size(out),
        "weights_bytes": (out / "onnx" / "model.onnx_data").stat().st_size,
        "key_value_bytes": {str(context): context * key_value_bytes(out) for context in CONTEXTS},
    }
    if recipe.execution_provider == "cpu":
        cache = work / "cache"
        run = [*program, "generate", str(out), PROMPT, "--max-new-tokens", "8", "--ignore-eos"]
        found["first_run"] = timed([*run, "--cache-dir", str(cache)], log)  # may pack weights, and keep them
        found["run"] = timed([*run, "--cache-dir", str(cache)], log)
        shutil.rmtree(cache, ignore_errors=True)
    for target, *options in PACKAGES.get(recipe.name, ()):
        package = work / "packaged"
        shutil.rmtree(package, ignore_errors=True)
        made = timed([*program, "package", str(out), str(package), "--for", target, *options], log)
        found.setdefault("packages", {})[target] = {"make": made, "bytes": size(package)}
        shutil.rmtree(package)
    shutil.rmtree(out)
    return found


def rounded(recipe: Recipe, work: Path) -> str:
    """The path of the recipe with rounding in place of GPTQ."""
    text = (ROOT / "export" / f"{recipe.name}.toml").read_text(encoding="utf-8")
    path = work / f"{recipe.name}.toml"
    path.write_text(text.replace('method = "gptq"', 'method = "round-to-nearest"'), encoding="utf-8")
    return str(path)


def key_value_bytes(bundle: Path) -> int:
    """Of one token in all layers, as the graphs keep them."""
    sizes = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
    graph = json.loads((bundle / "helium.json").read_text())["graphs"]["decode"]
    pasts = [spec for spec in graph["inputs"] if spec["name"].startswith("past_key_values.")]
    return sum(sizes[spec["dtype"]] * int(spec["dims"][1]) * int(spec["dims"][3]) for spec in pasts)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(map(str, error.cmd))} failed: see packages.log in the work folder")
