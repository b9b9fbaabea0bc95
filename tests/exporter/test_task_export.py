"""Which task a checkpoint is exported for, what the bundle says of it, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import reference
import task_models
import tiny

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.checkpoint import Checkpoint
from helium_onnx.errors import BundleError, ConfigError, HeliumOnnxError, RecipeError, UsageError, WeightsError
from helium_onnx.tasks import ROWS, Task


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[Task, Path]:
    """One of each class, as transformers saves it."""
    folder = tmp_path_factory.mktemp("tasks")
    saved: dict[Task, Path] = {
        task: reference.save(task_models.make_model(task, "helium"), folder / task) for task in task_models.TEXT_TASKS
    }
    saved["text-generation"] = tiny.write_checkpoint(folder / "text-generation")
    return saved


def copy(folder: Path, to: Path, *drop: str, **changes: object) -> Path:
    shutil.copytree(folder, to)
    tiny.edit_json(to / "config.json", *drop, **changes)
    return to


@pytest.mark.parametrize("task", ROWS)
def test_the_class_names_the_task(checkpoints: dict[Task, Path], task: Task) -> None:
    assert Checkpoint.open(checkpoints[task]).as_task(None).config.task == task


@pytest.mark.parametrize(("architectures", "task"), [([], "text-generation"), (["HeliumModel"], "feature-extraction")])
def test_other_spellings(checkpoints: dict[Task, Path], tmp_path: Path, architectures: list[str], task: Task) -> None:
    folder = copy(checkpoints["text-generation"], tmp_path / "checkpoint", architectures=architectures)
    assert Checkpoint.open(folder).as_task(None).config.task == task


def test_names_without_a_prefix(checkpoints: dict[Task, Path]) -> None:
    """HeliumModel saves its tensors without ``model.``."""
    source = Checkpoint.open(checkpoints["feature-extraction"]).as_task(None)
    source.check_tensors(source.config)
    assert source.read("model.norm.weight").shape == (64,)


def test_a_language_model_gives_its_hidden_states(checkpoints: dict[Task, Path], tmp_path: Path) -> None:
    bundle = helium_onnx.export(
        checkpoints["text-generation"], tmp_path / "out", task="feature-extraction", recipe="cpu-fp32"
    )
    assert bundle.task == "feature-extraction"
    assert bundle.model_config["architectures"] == ["HeliumModel"]
    assert not any(tensor.name.startswith("lm_head") for tensor in bundle.manifest.tensors)
    with helium_onnx.load(tmp_path / "out", task="feature-extraction") as model:
        assert model.embed(["Once upon a time", "the"]).shape == (2, 64)


def test_what_a_classifiers_bundle_holds(checkpoints: dict[Task, Path], tmp_path: Path) -> None:
    bundle = helium_onnx.export(checkpoints["text-classification"], tmp_path / "out", recipe="cpu-int8")
    labels = task_models.LABELS["text-classification"]
    named = {str(i): label for i, label in enumerate(labels)}
    assert bundle.model_config["id2label"] == named
    config = json.loads((bundle.path / "config.json").read_text())
    assert config["architectures"] == ["HeliumForSequenceClassification"]
    assert config["id2label"] == named
    assert config["label2id"] == {label: i for i, label in enumerate(labels)}
    assert {file.path for file in bundle.manifest.files} == {
        "config.json", "tokenizer.json", "tokenizer_config.json", "onnx/model.onnx", "onnx/model.native.onnx",
        "onnx/model.onnx_data",
    }  # fmt: skip
    assert set(bundle.manifest.graphs) == {"model", "native_model"}
    checks = helium_onnx.verify(bundle.path)
    assert [check.name for check in checks] == ["manifest", "files", "tokenizer", "model", "padding", "native"]
    assert all(check.ok for check in checks), [check.detail for check in checks]
    with helium_onnx.load(bundle.path, task="text-classification") as model:
        assert {one.label for one in model.classify("Once upon a time", top_k=None)} == set(labels)


def test_labels_without_names(checkpoints: dict[Task, Path], tmp_path: Path) -> None:
    """They are counted, as transformers does."""
    folder = copy(checkpoints["token-classification"], tmp_path / "checkpoint", "id2label", "label2id")
    assert Checkpoint.open(folder).as_task(None).config.id2label == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")


def refused(folder: Path, out: Path, error: type[HeliumOnnxError], *words: str, **options: object) -> HeliumOnnxError:
    with pytest.raises(error) as caught:
        helium_onnx.export(folder, out, **options)  # type: ignore[arg-type]
    assert not out.exists()
    assert caught.value.remedy is not None
    for word in words:
        assert word in str(caught.value)
    return caught.value


def test_no_such_task(checkpoints: dict[Task, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such task"):
        helium_onnx.export(checkpoints["text-generation"], tmp_path / "out", task="summarization")


def test_a_class_of_another_task(checkpoints: dict[Task, Path], tmp_path: Path) -> None:
    folder = copy(checkpoints["text-generation"], tmp_path / "checkpoint", architectures=["HeliumForQuestionAnswering"])
    refused(folder, tmp_path / "out", ConfigError, "HeliumForQuestionAnswering", "--task")


def test_no_classifier(checkpoints: dict[Task, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(checkpoints["text-generation"], out, WeightsError, "no classifier", "--adapter", task="text-classification")


def test_no_head(checkpoints: dict[Task, Path], tmp_path: Path) -> None:
    folder = checkpoints["feature-extraction"]
    refused(folder, tmp_path / "out", WeightsError, "lm_head.weight", task="text-generation")


@pytest.mark.parametrize("labels", [{"0": "de"}, {str(i): str(i) for i in range(9)}])
def test_more_or_fewer_labels_than_scores(
    checkpoints: dict[Task, Path], tmp_path: Path, labels: dict[str, str]
) -> None:
    folder = copy(checkpoints["text-classification"], tmp_path / "checkpoint", id2label=labels)
    refused(folder, tmp_path / "out", WeightsError, "score.weight", "[5, 64]")


@pytest.mark.parametrize("labels", [{"1": "de"}, ["de"], {"0": 3}, {"0": ""}])
def test_labels_that_are_none(checkpoints: dict[Task, Path], tmp_path: Path, labels: object) -> None:
    folder = copy(checkpoints["text-classification"], tmp_path / "checkpoint", id2label=labels)
    refused(folder, tmp_path / "out", ConfigError, "id2label")


def test_a_bias_that_transformers_does_not_know(checkpoints: dict[Task, Path], tmp_path: Path) -> None:
    """Of a classifier of texts: it would be left out, and the scores would be others."""
    folder = copy(checkpoints["text-classification"], tmp_path / "checkpoint")
    source = Checkpoint.open(folder)
    tensors = {name: source.read(name) for name in source.tensors}
    tiny.write_tensors(folder / "model.safetensors", {**tensors, "score.bias": np.zeros(5, np.float32)}, "F32")
    refused(folder, tmp_path / "out", WeightsError, "score.bias")


@pytest.mark.parametrize("recipe", ["qnn-fp16", "coreml-fp16"])
def test_recipes_of_fixed_shapes(checkpoints: dict[Task, Path], tmp_path: Path, recipe: str) -> None:
    folder = checkpoints["text-classification"]
    refused(folder, tmp_path / "out", RecipeError, "text generation", "cpu-int8", recipe=recipe)


def test_what_is_for_text_generation_alone(checkpoints: dict[Task, Path], tmp_path: Path) -> None:
    folder, out = checkpoints["feature-extraction"], tmp_path / "out"
    refused(folder, out, UsageError, "budget", recipe="cpu-int4", budget="5bits")
    refused(folder, out, UsageError, "adapter", recipe="cpu-int4", adapter_mode="runtime", adapter=tmp_path / "x")


def test_a_bundle_of_another_task(checkpoints: dict[Task, Path], tmp_path: Path) -> None:
    out = helium_onnx.export(checkpoints["feature-extraction"], tmp_path / "out", recipe="cpu-fp32").path
    with pytest.raises(BundleError, match="another task") as caught:
        helium_onnx.load(out, task="text-generation")
    assert caught.value.remedy == "export the checkpoint anew: --task text-generation"
    assert isinstance(helium_onnx.load(out), helium_onnx.EmbeddingModel)
    with pytest.raises(UsageError, match="draft"):
        helium_onnx.load(out, draft=out)


def test_equal_inputs_give_equal_bytes(checkpoints: dict[Task, Path], tmp_path: Path) -> None:
    first, second = (
        helium_onnx.export(checkpoints["token-classification"], tmp_path / name, recipe="cpu-int4").digest
        for name in ("a", "b")
    )
    assert first == second


def test_half_precision_gives_float32(checkpoints: dict[Task, Path], tmp_path: Path) -> None:
    """CUDA's graph, on the CPU's kernels: near the float32 one, and float32 outside."""
    exact = helium_onnx.export(checkpoints["text-classification"], tmp_path / "fp32", recipe="cpu-fp32")
    half = helium_onnx.export(checkpoints["text-classification"], tmp_path / "fp16", recipe="cuda-fp16")
    assert [spec.dtype for spec in half.manifest.graphs["model"].outputs] == ["float32"]
    ids, mask = np.array([[1, 300, 270, 290], [1, 280, 3, 3]]), np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    answers = [run(bundle, ids, mask) for bundle in (exact, half)]
    assert answers[1].dtype == np.float32
    np.testing.assert_allclose(answers[1], answers[0], atol=0.03 * np.abs(answers[0]).max())
    checks = helium_onnx.verify(half.path)
    assert all(check.ok for check in checks), [check.detail for check in checks]
    # CUDA's kernel asks for a place to keep keys and values, though nobody reads it; the CPU's needs none.
    for bundle, outputs in ((exact, 1), (half, 3)):
        nodes = onnx.load(bundle.graph_path("model"), load_external_data=False).graph.node
        made = [sum(map(bool, node.output)) for node in nodes if node.op_type == "GroupQueryAttention"]
        assert made == [outputs] * 3


def run(bundle: Bundle, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    import onnxruntime as ort

    session = ort.InferenceSession(bundle.graph_path("model"))
    return session.run(None, {"input_ids": ids, "attention_mask": mask})[0]  # type: ignore[no-any-return]
