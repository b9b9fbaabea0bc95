"""optimum with helium_onnx.optimum.register(): its classes, its command and its exporter make and run our graphs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import tiny
import torch
import transformers
from conftest import Ours
from environments import CLIENTS, OPTIMUM
from jobs import require, run_script

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.contract import WEIGHTS_FILE

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/optimum.md").read_text(encoding="utf-8")
GREEDY = {"max_new_tokens": 200, "do_sample": False}
#: ONNX Runtime's operators in our model.onnx; optimum's own trace has none.
OURS = ["GroupQueryAttention", "RotaryEmbedding", "SkipSimplifiedLayerNormalization"]
FILES = {"config.json", "generation_config.json", "model.onnx", "model.onnx_data", "tokenizer.json",
         "tokenizer_config.json"}  # fmt: skip
PLACES = 4

#: optimum's class, the one of transformers that it is held against, and the output that is compared.
CASES = {
    "features": ("ORTModelForFeatureExtraction", "HeliumModel", "last_hidden_state"),
    "texts": ("ORTModelForSequenceClassification", "HeliumForSequenceClassification", "logits"),
    "tokens": ("ORTModelForTokenClassification", "HeliumForTokenClassification", "logits"),
    "llama": ("ORTModelForCausalLM", "LlamaForCausalLM", "logits"),
    "llama-texts": ("ORTModelForSequenceClassification", "LlamaForSequenceClassification", "logits"),
}


@pytest.fixture(scope="module", autouse=True)
def checkout() -> Iterator[None]:
    """The environment has what helium_onnx needs, and takes helium_onnx itself from here."""
    require(OPTIMUM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        yield


def run_steps(*steps: dict[str, Any]) -> list[Any]:
    answers: list[Any] = run_script(OPTIMUM, "registered.py", {"steps": steps})
    return answers


def graph_and_weights(folder: Path) -> dict[str, str]:
    """SHA-256 of a bundle's model.onnx and weights."""
    files = {file.path: file.sha256 for file in Bundle.open(folder).manifest.files}
    return {"model.onnx": files["onnx/model.onnx"], "model.onnx_data": files[WEIGHTS_FILE]}


def test_a_language_model(
    sample_checkpoint: Path, export_sample: Callable[[str], Path], ours: Callable[[str], Ours], tmp_path: Path
) -> None:
    expected = ours("cpu-fp32")
    load = {"do": "load", "class": "ORTModelForCausalLM", "model": str(sample_checkpoint)}
    batch = {"do": "generate", "prompts": expected.prompts, "options": GREEDY}
    few = {**batch, "prompts": expected.prompts[:1], "options": {**GREEDY, "max_new_tokens": 12}}
    registered, again, loaded, tokens, saved, _, tokens_of_saved, _, without, other, own, theirs = run_steps(
        {"do": "register", "options": {}},
        {"do": "register", "options": {"recipe": "cpu-fp32"}},
        load,
        batch,
        {"do": "save", "folder": str(tmp_path / "saved")},
        {**load, "model": str(tmp_path / "saved"), "export": False},
        few,
        {**load, "options": {"use_cache": False}},
        few,
        {"do": "register", "options": {"recipe": "cpu-int4-fast"}},
        {"do": "unregister"},
        load,
    )
    assert registered == again == other == [False] * PLACES
    assert own == [True] * PLACES
    # The same bytes as in a bundle that was exported outside.
    bundle = graph_and_weights(export_sample("cpu-fp32"))
    assert bundle.items() <= loaded["files"].items()
    assert bundle.items() <= saved["files"].items()
    assert loaded["operators"] == OURS
    assert theirs["operators"] == []
    assert tokens == expected.batch
    assert tokens_of_saved == without == [expected.batch[0][:12]]


def test_another_recipe(sample_checkpoint: Path, export_sample: Callable[[str], Path], tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    options = {"model_name_or_path": str(sample_checkpoint), "output": out, "task": "text-generation-with-past"}
    _, made = run_steps(
        {"do": "register", "options": {"recipe": "cpu-int4-fast"}}, {"do": "main_export", "options": options}
    )
    assert set(made["files"]) == FILES
    assert graph_and_weights(export_sample("cpu-int4-fast")).items() <= made["files"].items()
    assert "MatMulNBits" in made["operators"]


def make_checkpoint(name: str, folder: Path) -> Path:
    """A random checkpoint of a class of transformers, with five labels where it has a classifier."""
    llama = name.startswith("Llama")
    kind = transformers.LlamaConfig if llama else transformers.HeliumConfig
    theta = 20_000.0 if llama else 100_000.0
    config = kind(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=256, rms_norm_eps=1e-5 if llama else 1e-8,
        rope_parameters={"rope_theta": theta, "rope_type": "default"}, bos_token_id=1, eos_token_id=2, pad_token_id=3,
        id2label={i: f"label {i}" for i in range(5)},
    )  # fmt: skip
    model = getattr(transformers, name)(config).float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = 0.25 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise + 1 if key.endswith("norm.weight") else noise)
    reference.save(model, folder)
    tiny.write_json(folder / "tokenizer_config.json", tiny.tokenizer_config(256))
    tiny.edit_json(folder / "config.json", rope_theta=theta)  # where transformers 4.57 looks for it
    return folder


def test_every_class_and_both_families(tmp_path: Path) -> None:
    """Within 1e-4 of transformers in float32, for ragged rows padded on either side."""
    steps: list[dict[str, Any]] = [{"do": "register", "options": {"model_types": ["helium", "llama"]}}]
    rows = [np.random.default_rng(length).integers(4, 320, length) for length in (64, 30, 5)]
    for case, (ort_class, theirs, output) in CASES.items():
        checkpoint = str(make_checkpoint(theirs, tmp_path / case))
        steps.append({"do": "load", "class": ort_class, "model": checkpoint})
        for side in ("left", "right"):
            ids, mask = reference.padded(rows, side)
            job = {"do": "forward", "ids": ids.tolist(), "mask": mask.tolist(), "output": output}
            steps.append({**job, "theirs": theirs, "checkpoint": checkpoint})
    _, *answers = run_steps(*steps)
    for i, case in enumerate(CASES):
        made, *errors = answers[3 * i : 3 * i + 3]
        assert made["operators"] == OURS, case
        assert max(errors) <= reference.TOLERANCE, (case, errors)


def test_what_optimum_alone_does_not_export(tmp_path: Path) -> None:
    """Without register() it refuses classifiers; with it, other families and what is no Helium are as they were."""
    checkpoint = make_checkpoint("HeliumForSequenceClassification", tmp_path / "texts")
    llama = make_checkpoint("LlamaForCausalLM", tmp_path / "llama")
    scaled = shutil.copytree(llama, tmp_path / "scaled")
    tiny.edit_json(scaled / "config.json", rope_scaling={"rope_type": "linear", "factor": 2.0})
    gpt2 = transformers.GPT2Config(vocab_size=320, n_positions=64, n_embd=32, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(gpt2).save_pretrained(tmp_path / "gpt2")

    def export(path: Path, task: str, **options: Any) -> dict[str, Any]:
        arguments = {"model_name_or_path": str(path), "output": str(tmp_path / "out" / path.name), "task": task}
        return {"do": "main_export", "options": {**arguments, **options}}

    refused, _, taken, other, llamas, wrong, _, no_helium = run_steps(
        export(checkpoint, "text-classification", do_validation=False),
        {"do": "register", "options": {}},
        export(checkpoint, "auto"),
        export(tmp_path / "gpt2", "text-generation", do_validation=False),
        export(llama, "text-generation", do_validation=False),
        export(checkpoint, "text-classification", dtype="fp16", opset=18),
        {"do": "register", "options": {"model_types": ["llama"]}},
        export(scaled, "text-generation"),
    )
    assert refused["error"] == "ValueError"
    assert "only supports the tasks" in refused["text"]
    assert taken["operators"] == OURS
    assert other["operators"] == llamas["operators"] == []
    assert wrong["error"] == "UsageError"
    assert "opset=18, dtype='fp16'" in wrong["text"]
    assert no_helium["error"] == "ConfigError"
    assert "rope_scaling cannot be used" in no_helium["text"]


def command(*args: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    words = [OPTIMUM.program, "-m", "helium_onnx.optimum", *map(str, args)]
    return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_the_command(sample_checkpoint: Path, export_sample: Callable[[str], Path], tmp_path: Path) -> None:
    done = command("--recipe", "cpu-int4-fast", "export", "onnx", "--model", sample_checkpoint, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    bundle = export_sample("cpu-int4-fast")
    assert (tmp_path / "out/model.onnx").read_bytes() == (bundle / "onnx/model.onnx").read_bytes()
    for args, code, message in (
        (("--recipe", "cpu-int44", "export"), 1, "did you mean 'cpu-int4'?"),
        (("--model-types", "gpt2", "export"), 2, "model_types"),
        (("export", "onnx", "--model", sample_checkpoint, "--dtype", "fp16", tmp_path / "no"), 2, "dtype='fp16'"),
    ):
        refused = command(*args)
        assert refused.returncode == code, refused.stderr
        assert message in refused.stderr
        assert "Traceback" not in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_package_for_optimum(
    export_sample: Callable[[str], Path], ours: Callable[[str], Ours], tmp_path: Path
) -> None:
    """Without register(): the folder alone."""
    package = helium_onnx.package(export_sample("cpu-fp32"), tmp_path / "package", target="optimum")
    load = {"do": "load", "class": package.manifest.package["class"], "model": str(package.path), "export": False}
    checkpoint = make_checkpoint("HeliumForTokenClassification", tmp_path / "tokens")
    bundle = helium_onnx.export(checkpoint, tmp_path / "bundle", recipe="cpu-fp32")
    tagger = helium_onnx.package(bundle.path, tmp_path / "tagger", target="optimum")
    ids, mask = reference.padded([reference.random_ids(1, length)[0] for length in (64, 9)], "left")
    loaded, tokens, _, error = run_steps(
        load,
        {"do": "generate", "prompts": ours("cpu-fp32").prompts, "options": GREEDY},
        {**load, "class": tagger.manifest.package["class"], "model": str(tagger.path)},
        {"do": "forward", "ids": ids.tolist(), "mask": mask.tolist(), "output": "logits",
         "theirs": "HeliumForTokenClassification", "checkpoint": str(checkpoint)},
    )  # fmt: skip
    assert set(loaded["files"]) == {"model.onnx", "model.onnx_data"}
    assert tokens == ours("cpu-fp32").batch
    assert tagger.manifest.package["class"] == "ORTModelForTokenClassification"
    assert error <= reference.TOLERANCE


@pytest.mark.parametrize("number", range(DOCUMENT.count("```python")))
def test_the_page_runs(
    number: int, sample_checkpoint: Path, export_sample: Callable[[str], Path], tmp_path: Path
) -> None:
    source = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)[number]
    for name in ("helium-1-preview-2b", "language-id"):
        shutil.copytree(sample_checkpoint, tmp_path / name)
    make_checkpoint("HeliumForSequenceClassification", tmp_path / "language-id")
    helium_onnx.package(export_sample("cpu-fp32"), tmp_path / "out/helium-optimum", target="optimum")
    (tmp_path / "main.py").write_text(source, encoding="utf-8")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [OPTIMUM.program, "main.py"], cwd=tmp_path, capture_output=True, encoding="utf-8", env=environment,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(done.stdout.strip()) > 20


def test_versions_are_those_of_the_environment() -> None:
    pins = (CLIENTS / "optimum/requirements.txt").read_text()
    for package in ("optimum-onnx[onnxruntime]", "optimum", "transformers", "onnxruntime", "torch"):
        (version,) = re.findall(rf"^{re.escape(package)}==([\d.]+)$", pins, re.MULTILINE)
        assert re.search(rf"{re.escape(package.split('[')[0])} {re.escape(version)}\b", DOCUMENT), package
