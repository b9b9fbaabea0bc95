"""validate of a task without generation: beside transformers, and where the checkpoint is another one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import reference
import task_models
import tiny
from command_line import invoke

import helium_onnx
from helium_onnx import kernels
from helium_onnx.checkpoint import Checkpoint
from helium_onnx.evaluation.task_parity import TaskParityReport
from helium_onnx.tasks import Task

TEXTS = ["Once upon a time", "the table", "an inn of the tables in the table"]


@pytest.fixture(scope="module", params=task_models.TEXT_TASKS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Path, Path]:
    folder = tmp_path_factory.mktemp("validate")
    checkpoint = reference.save(task_models.make_model(request.param, "helium"), folder / "checkpoint")
    return request.param, checkpoint, helium_onnx.export(checkpoint, folder / "out", recipe="cpu-fp32").path


def test_float32_passes(exported: tuple[Task, Path, Path]) -> None:
    task, checkpoint, bundle = exported
    report = helium_onnx.validate(bundle, against=checkpoint, prompts=TEXTS)
    assert isinstance(report, TaskParityReport)
    assert report.passed
    graph = "model.native.onnx" if kernels.vectorized() else "model.onnx"
    assert (report.task, report.graph, report.tolerance) == (task, graph, 1e-4)
    assert [row.prompt for row in report.rows] == TEXTS
    for row in report.rows:
        assert row.difference <= 1e-5
        assert row.cosine == pytest.approx(1, abs=1e-6)
        assert row.same_label is (None if task == "feature-extraction" else True)


def test_other_weights_fail(exported: tuple[Task, Path, Path], tmp_path: Path) -> None:
    _, checkpoint, bundle = exported
    other = tmp_path / "other"
    other.mkdir()
    for file in ("config.json", "tokenizer.json"):
        (other / file).write_bytes((checkpoint / file).read_bytes())
    source = Checkpoint.open(checkpoint)
    prefix = "" if "score.weight" in source.tensors else "model."
    tensors = {name.removeprefix(prefix): source.read(name) for name in source.tensors}
    norm = next(name for name in tensors if name.endswith("layers.1.post_attention_layernorm.weight"))
    tensors[norm] = np.ones_like(tensors[norm])
    tiny.write_tensors(other / "model.safetensors", tensors, "F32")
    result = invoke("validate", bundle, "--against", other, "--prompt", TEXTS[0])
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    assert "warning" in result.stdout


def test_quantized_is_reported(exported: tuple[Task, Path, Path], tmp_path: Path) -> None:
    _, checkpoint, _ = exported
    bundle = helium_onnx.export(checkpoint, tmp_path / "out", recipe="cpu-int8").path
    result = invoke("validate", bundle, "--against", checkpoint, "--prompt", TEXTS[0], "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["passed"] is True
    assert report["tolerance"] is None
    assert 0 < report["rows"][0]["difference"] < 0.6


def test_a_text_alone_for_a_model_without_padding(tmp_path: Path) -> None:
    model = task_models.make_model("text-classification", "llama", pad_token_id=None)
    checkpoint = reference.save(model, tmp_path / "checkpoint")
    bundle = helium_onnx.export(checkpoint, tmp_path / "out", recipe="cpu-fp32").path
    assert helium_onnx.validate(bundle, against=checkpoint, prompts=TEXTS).passed
