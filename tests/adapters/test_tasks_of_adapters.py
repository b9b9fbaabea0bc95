"""Adapters of other tasks than text generation: layers merged, a classifier's head taken over, the task theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import reference
import torch
from peft_adapters import adapted, write_adapter

import helium_onnx
from helium_onnx.errors import AdapterError, UsageError, WeightsError

TASKS = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "FEATURE_EXTRACTION": "feature-extraction",
}
LABELS = 5


def adapter_of(task: str, base: Path, folder: Path, **options: Any) -> Path:
    labels = None if task == "FEATURE_EXTRACTION" else LABELS
    return write_adapter(base, folder, task_type=task, labels=labels, **options)


@pytest.mark.parametrize("task", TASKS)
def test_outputs_are_those_of_peft(task: str, base: Path, tmp_path: Path) -> None:
    adapter = adapter_of(task, base, tmp_path / "adapter")
    bundle = helium_onnx.export(base, tmp_path / "out", recipe="cpu-fp32", adapter=adapter)
    assert bundle.task == TASKS[task]
    ids = reference.random_ids(2, 64)
    options = {} if task == "FEATURE_EXTRACTION" else {"num_labels": LABELS}
    with torch.inference_mode():
        model = adapted(base, adapter, merge=True, task=task, **options)
        expected = model(torch.from_numpy(ids), torch.ones(2, 64, dtype=torch.long))[0].numpy()
    session = ort.InferenceSession(bundle.graph_path("model"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= reference.TOLERANCE * np.abs(expected).max()


def test_a_classifier_without_its_adapter_has_no_head(base: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="has no classifier"):
        helium_onnx.export(base, tmp_path / "out", recipe="cpu-fp32", task="text-classification")


def test_two_tasks_are_refused(helium: Path, tmp_path: Path) -> None:
    folders = [adapter_of(task, helium, tmp_path / task) for task in ("SEQ_CLS", "FEATURE_EXTRACTION")]
    with pytest.raises(AdapterError, match="different tasks"):
        helium_onnx.export(helium, tmp_path / "out", recipe="cpu-fp32", adapter=folders)


def test_a_task_that_is_asked_for_comes_first(helium: Path, tmp_path: Path) -> None:
    adapter = adapter_of("SEQ_CLS", helium, tmp_path / "adapter")
    bundle = helium_onnx.export(helium, tmp_path / "out", recipe="cpu-fp32", adapter=adapter, task="feature-extraction")
    assert bundle.task == "feature-extraction"


def test_a_head_cannot_come_at_run_time(helium: Path, tmp_path: Path) -> None:
    adapter = adapter_of("SEQ_CLS", helium, tmp_path / "adapter")
    with pytest.raises(AdapterError, match="cannot be applied at run time") as caught:
        helium_onnx.export(helium, tmp_path / "out", recipe="cpu-fp32", adapter=adapter, adapter_mode="runtime")
    assert "score.weight" in str(caught.value)


def test_adapters_at_run_time_are_for_text_generation(helium: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="for text generation"):
        helium_onnx.export(
            helium, tmp_path / "out", recipe="cpu-fp32", task="feature-extraction", adapter_mode="runtime"
        )
