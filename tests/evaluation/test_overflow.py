"""The check for float16: every place of the model is looked at, and the verdict is what half precision really does."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from command_line import invoke
from safetensors.torch import load_file, save_file

import helium_onnx
from helium_onnx.checkpoint import Checkpoint
from helium_onnx.errors import CheckpointNotFoundError, TextError, UsageError
from helium_onnx.evaluation.activations import LAYER_PLACES, Peak, largest_activations
from helium_onnx.evaluation.overflow import LIMIT, OverflowReport, percent, verdict
from helium_onnx.progress import ProgressEvent, silent

LENGTHS = (70, 3, 41)
#: A power of two: products by it are exact.
LARGE = 2.0**20


def texts() -> list[list[int]]:
    return [reference.random_ids(1, length, seed)[0].tolist() for seed, length in enumerate(LENGTHS)]


def peaks_of(model: Any, folder: Path) -> dict[tuple[int | None, str], float]:
    checkpoint = Checkpoint.open(reference.save(model, folder))
    return {(peak.layer, peak.place): peak.largest for peak in largest_activations(checkpoint, texts(), silent)}


def scale(model: Any, layer: int, module: str, factor: float) -> None:
    with torch.no_grad():
        model.model.layers[layer].get_submodule(module).weight.mul_(factor)


def seen_by_transformers(model: Any) -> dict[tuple[int | None, str], float]:
    """The same figures from hooks on the model of ``transformers``: outputs of modules, and inputs of three."""
    found: dict[tuple[int | None, str], float] = {}

    def look(key: tuple[int | None, str], value: torch.Tensor) -> None:
        found[key] = max(found.get(key, 0.0), float(value.abs().max()))

    def watch(key: tuple[int | None, str], module: torch.nn.Module, *, given: bool = False) -> None:
        if given:
            module.register_forward_pre_hook(lambda _module, args: look(key, args[0]))
        else:
            module.register_forward_hook(lambda _module, _args, output: look(key, output))

    inner = model.model
    watch((None, "embed_tokens"), inner.embed_tokens)
    for index, layer in enumerate(inner.layers):
        for name in ("input_layernorm", "post_attention_layernorm"):
            watch((index, name), getattr(layer, name))
        for name in ("v_proj", "o_proj"):
            watch((index, name), getattr(layer.self_attn, name))
        for name in ("gate_proj", "up_proj", "down_proj"):
            watch((index, name), getattr(layer.mlp, name))
        watch((index, "attention"), layer.self_attn.o_proj, given=True)
        watch((index, "silu(gate) * up"), layer.mlp.down_proj, given=True)
        watch((index, "residual + o_proj"), layer.post_attention_layernorm, given=True)
        following = inner.layers[index + 1].input_layernorm if index + 1 < len(inner.layers) else inner.norm
        watch((index, "residual + down_proj"), following, given=True)
    watch((None, "norm"), inner.norm)
    watch((None, "lm_head"), model.lm_head)
    with torch.inference_mode():
        for ids in texts():
            model(torch.tensor([ids]))
    return found


@pytest.mark.parametrize("model_type", ["helium", "llama"])
@pytest.mark.parametrize(("kv_heads", "tie"), [(4, False), (2, True)])
def test_every_place_has_the_largest_value_that_transformers_has(
    model_type: str, kv_heads: int, tie: bool, tmp_path: Path
) -> None:
    model = reference.make_model(model_type, layers=3, kv_heads=kv_heads, tie=tie)
    found = peaks_of(model, tmp_path / "c")
    assert list(found) == [
        (None, "embed_tokens"), *((i, place) for i in range(3) for place in LAYER_PLACES), (None, "norm"),
        (None, "lm_head"),
    ]  # fmt: skip
    wanted = seen_by_transformers(model)
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value, rel=1e-4), key
    assert set(found) - set(wanted) == {(i, place) for i in range(3) for place in ("q_proj", "k_proj", "scores")}


def test_queries_keys_and_scores_are_those_of_the_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores that softmax is given, and rotated queries and keys, taken from the model's own arithmetic."""
    from helium_onnx import modeling

    folder = reference.save(reference.make_model("helium", layers=1, kv_heads=2), tmp_path / "c")
    largest: dict[str, float] = {}
    rotate, softmax = modeling.rotate, torch.Tensor.softmax
    calls: list[float] = []

    def seen_rotate(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result = rotate(x, *args, **kwargs)
        calls.append(max(float(x.abs().max()), float(result.abs().max())))
        return result

    def seen_softmax(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        allowed = x[x > torch.finfo(x.dtype).min]
        largest["scores"] = max(largest.get("scores", 0.0), float(allowed.abs().max()))
        return softmax(x, *args, **kwargs)

    model = modeling.HeliumForCausalLM.from_checkpoint(Checkpoint.open(folder))
    with monkeypatch.context() as patched:
        patched.setattr(modeling, "rotate", seen_rotate)
        patched.setattr(torch.Tensor, "softmax", seen_softmax)
        for ids in texts():
            batch = torch.tensor([ids])
            model(batch, torch.ones_like(batch), model.empty_past())
    found = {peak.place: peak.largest for peak in largest_activations(Checkpoint.open(folder), texts(), silent)}
    assert found["q_proj"] == pytest.approx(max(calls[0::2]), rel=1e-5)
    assert found["k_proj"] == pytest.approx(max(calls[1::2]), rel=1e-5)
    assert found["scores"] == pytest.approx(largest["scores"], rel=1e-5)


@pytest.mark.parametrize(
    ("layer", "larger", "smaller", "places"),
    [
        (1, "self_attn.v_proj", "self_attn.o_proj", {"v_proj", "attention"}),
        (0, "mlp.up_proj", "mlp.down_proj", {"up_proj", "silu(gate) * up"}),
        (2, "self_attn.q_proj", "self_attn.k_proj", {"q_proj"}),
        (2, "self_attn.k_proj", "self_attn.q_proj", {"k_proj"}),
    ],
)
def test_an_overflow_is_found_where_it_is_and_nowhere_else(
    layer: int, larger: str, smaller: str, places: set[str], tmp_path: Path
) -> None:
    """Two matrices scaled against each other leave every other activation, and the logits, as they were."""
    model = reference.make_model("helium", layers=3)
    before = peaks_of(model, tmp_path / "before")
    scale(model, layer, larger, LARGE)
    scale(model, layer, smaller, 1 / LARGE)
    after = peaks_of(model, tmp_path / "after")
    changed = {key for key in after if verdict(after[key]) != verdict(before[key])}
    assert changed == {(layer, place) for place in places}
    assert {verdict(after[key]) for key in changed} == {"overflows"}
    assert {verdict(value) for value in before.values()} == {"safe"}
    ids = torch.tensor([texts()[0]])
    with torch.inference_mode():
        half = model.to(torch.float16)(ids).logits
    assert not torch.isfinite(half).all()  # what the check warns of


def test_what_is_safe_is_finite_in_float16() -> None:
    model = reference.make_model("helium", layers=3).to(torch.float16)
    with torch.inference_mode():
        assert torch.isfinite(model(torch.tensor([texts()[0]])).logits).all()


def test_the_verdicts_bounds() -> None:
    assert [verdict(x) for x in (0.0, 16375.9, 16376.0, 65504.0, 65504.1, math.inf)] == [
        "safe", "safe", "close", "close", "overflows", "overflows",
    ]  # fmt: skip
    assert float(torch.tensor(LIMIT).half()) == LIMIT == torch.finfo(torch.float16).max
    assert [percent(Peak(0, "x", x)) for x in (6.5504, 0.5 * LIMIT, 3 * LIMIT, math.inf)] == [
        "0.01 %", "50 %", "300 %", "not finite",
    ]  # fmt: skip


def test_nan_is_an_overflow_and_null_in_json(tmp_path: Path) -> None:
    model = reference.make_model("helium", layers=2)
    scale(model, 1, "mlp.gate_proj", 1e38)  # float32 itself overflows: inf * 0 is NaN further on
    scale(model, 1, "mlp.up_proj", 1e38)
    folder = reference.save(model, tmp_path / "c")
    peaks = largest_activations(Checkpoint.open(folder), texts(), silent)
    report = OverflowReport("c", "t", 1, peaks)
    assert report.verdict == "overflows" and not report.passed
    text = json.dumps(report.to_dict(), allow_nan=False)
    rows = {(row["layer"], row["place"]): row for row in json.loads(text)["peaks"]}
    assert rows[1, "silu(gate) * up"]["largest"] is None
    assert rows[1, "silu(gate) * up"]["verdict"] == "overflows"
    assert rows[0, "silu(gate) * up"]["largest"] is not None


def test_progress_ends_with_all(tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    checkpoint = Checkpoint.open(reference.save(reference.make_model("helium"), tmp_path / "c"))
    largest_activations(checkpoint, texts(), events.append)
    assert events[-1].done == events[-1].total > 0


def changed_sample(sample: Path, folder: Path) -> Path:
    """The sample, whose values in layer 2 overflow float16, and whose text is the same."""
    shutil.copytree(sample, folder)
    tensors = load_file(folder / "model.safetensors")
    attention = "model.layers.2.self_attn"
    tensors[f"{attention}.v_proj.weight"] *= LARGE
    tensors[f"{attention}.o_proj.weight"] /= LARGE
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_the_command_on_a_model_that_fits(sample_checkpoint: Path) -> None:
    result = invoke("overflow", sample_checkpoint, "--tokens", 512)
    assert result.exit_code == 0, result.stderr
    assert "safe: every activation is below a quarter" in result.stdout
    assert "512 tokens of calibration.jsonl" in result.stdout
    assert all(place in result.stdout for place in LAYER_PLACES)
    assert "cuda-bf16" not in result.stdout
    quiet = invoke("overflow", sample_checkpoint, "--tokens", 512, "--json", "--quiet")
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    found = json.loads(quiet.stdout)
    assert (found["verdict"], found["remedy"], found["tokens"]) == ("safe", None, 512)
    assert len(found["peaks"]) == 3 + 6 * len(LAYER_PLACES)


def test_the_command_on_a_model_that_does_not_fit(sample_checkpoint: Path, tmp_path: Path) -> None:
    folder = changed_sample(sample_checkpoint, tmp_path / "changed")
    result = invoke("overflow", folder, "--tokens", 512)
    assert result.exit_code == 1
    assert "OVERFLOWS" in result.stdout and "layer 2, v_proj" in result.stdout
    assert "use the recipe cuda-bf16" in result.stdout
    found = json.loads(invoke("overflow", folder, "--tokens", 512, "--json", "--quiet").stdout)
    assert found["verdict"] == "overflows"
    assert {(r["layer"], r["place"]) for r in found["peaks"] if r["verdict"] == "overflows"} == {
        (2, "v_proj"),
        (2, "attention"),
    }


def test_what_is_asked_wrongly(sample_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tokens is out of range"):
        helium_onnx.overflow(sample_checkpoint, tokens=3)
    with pytest.raises(CheckpointNotFoundError):
        helium_onnx.overflow(tmp_path / "absent")
    with pytest.raises(TextError, match="there is no file"):
        helium_onnx.overflow(sample_checkpoint, text=tmp_path / "absent.jsonl")
    assert invoke("overflow", sample_checkpoint, "--tokens", 3).exit_code == 2
