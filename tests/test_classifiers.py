"""The adapters of samples/classifiers on pages that nothing was trained on: in float32 and quantized."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import helium_onnx

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "samples/classifiers"
BASE = ROOT / "samples/helium-docs-7m"


@pytest.fixture(scope="module")
def training() -> ModuleType:
    """train.py, which is a script and no module of ours."""
    pytest.importorskip("peft")
    spec = importlib.util.spec_from_file_location("train", FOLDER / "train.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages() -> list[dict[str, str]]:
    with (ROOT / "benchmarks/data/valid.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def right(recipe: str, pages: list[dict[str, str]], folder: Path) -> list[bool]:
    bundle = helium_onnx.export(
        BASE, folder / recipe, task="text-classification", adapter=FOLDER / "language-id", recipe=recipe
    )
    with helium_onnx.load(bundle.path, task="text-classification") as model:
        found = model.classify([page["text"] for page in pages], truncate=True)
    return [labels[0].label == page["lang"] for page, labels in zip(pages, found, strict=True)]


def test_language_id(training: ModuleType, pages: list[dict[str, str]], tmp_path: Path) -> None:
    believed = [training.believed(page["text"], page["lang"]) for page in pages]
    assert sum(believed) == 304
    share = {}
    for recipe in ("cpu-fp32", "cpu-int4"):
        hits = right(recipe, pages, tmp_path)
        share[recipe] = sum(hit for hit, sure in zip(hits, believed, strict=True) if sure) / sum(believed)
        assert share[recipe] >= 0.99, share
    assert share["cpu-int4"] >= share["cpu-fp32"] - 0.002


def f1(training: ModuleType, label: str, recipe: str, texts: list[str], folder: Path) -> float:
    """Of entities, to the character, beside the rule that made the labels."""
    bundle = helium_onnx.export(
        BASE, folder / recipe, task="token-classification", adapter=FOLDER / "menu-tags", recipe=recipe, force=True
    )
    with helium_onnx.load(bundle.path, task="token-classification") as model:
        tagged = model.tag(texts, truncate=True)
    rule = dict(training.RULES)[label]
    found = [{(one.start, one.end) for one in entities if one.label == label} for entities in tagged]
    wanted = [{match.span(1) for match in rule.finditer(text)} for text in texts]
    common = sum(len(a & b) for a, b in zip(found, wanted, strict=True))
    return 2 * common / (sum(map(len, found)) + sum(map(len, wanted)))


@pytest.mark.parametrize("recipe", ["cpu-fp32", "cpu-int4"])
def test_menu_tags(recipe: str, training: ModuleType, pages: list[dict[str, str]], tmp_path: Path) -> None:
    """Every fourth page for commands; for keys, all pages that have any."""
    texts = [page["text"] for page in pages]
    assert f1(training, "MENU", recipe, [text[:2000] for text in texts[::4]], tmp_path) > 0.9
    keys = [text[:6000] for text in texts if dict(training.RULES)["KEY"].search(text[:6000])]
    assert len(keys) > 25
    assert f1(training, "KEY", recipe, keys, tmp_path) > 0.95


@pytest.mark.parametrize(("name", "most"), [("language-id", 100_000), ("menu-tags", 300_000)])
def test_the_adapters_are_small(name: str, most: int) -> None:
    files = list((FOLDER / name).iterdir())
    assert {file.name for file in files} == {"adapter_config.json", "adapter_model.safetensors", "config.json"}
    assert sum(file.stat().st_size for file in files) < most


def sample(script: str, *texts: str) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "samples" / script, *texts], capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_sample_of_languages() -> None:
    shown = sample("language_id.py", "Choisissez Fichier - Imprimer pour imprimer le document.")
    assert "\n    fr 0.9" in shown or "\n    fr 1.0" in shown, shown


def test_the_sample_of_tags() -> None:
    shown = sample("menu_tags.py", "Choose Insert - Image, or press Ctrl+Shift+F3.")
    assert re.search(r"MENU +[01]\.\d+  characters 16-21: Image\n", shown), shown
    assert re.search(r"KEY +[01]\.\d+  characters 43-45: F3\n", shown), shown
