"""helium_onnx.optimum without optimum: who gets which model, over stand-ins for the four modules that it changes.

tests/interop/test_optimum_register.py has the real one.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
from command_line import PROGRAM

import helium_onnx
import helium_onnx.optimum
from helium_onnx.errors import MissingDependencyError, RecipeError, UsageError
from helium_onnx.packaging.optimum import CLASSES

PLACES = helium_onnx.optimum._PLACES


@pytest.fixture
def optimum(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Modules by optimum's names with one ``main_export`` in all of them, which adds its arguments to this list."""
    calls: list[Any] = []

    def main_export(  # as optimum's, in the form of its arguments
        model_name_or_path: str,
        output: str | Path,
        task: str = "auto",
        opset: int | None = None,  # noqa: ARG001
        dtype: str | None = None,  # noqa: ARG001
        subfolder: str = "",  # noqa: ARG001
        revision: str = "main",  # noqa: ARG001
        cache_dir: str = "somewhere",  # noqa: ARG001
        local_files_only: bool = False,  # noqa: ARG001
        do_validation: bool = True,  # noqa: ARG001
        **kwargs_shapes: int,
    ) -> str:
        calls.append((model_name_or_path, output, task, kwargs_shapes))
        return "optimum's"

    names = {".".join(place.split(".")[:i]) for place in PLACES for i in range(1, place.count(".") + 2)}
    for name in names | {"optimum.exporters.tasks"}:
        module = ModuleType(name)
        module.__path__ = []
        if name in PLACES:
            module.main_export = main_export  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)

    class TasksManager:
        @staticmethod
        def map_from_synonym(task: str) -> str:
            return {"causal-lm-with-past": "text-generation-with-past"}.get(task, task)

    monkeypatch.setattr(sys.modules["optimum.exporters.tasks"], "TasksManager", TasksManager, raising=False)
    return calls


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What helium_onnx.export is asked for, in place of the export."""
    asked: list[dict[str, Any]] = []

    def export(checkpoint: object, _out: Path, **options: Any) -> Any:
        asked.append({"checkpoint": str(checkpoint), **options})
        raise UsageError("far enough")

    monkeypatch.setattr(helium_onnx, "export", export)
    return asked


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny.write_checkpoint(tmp_path / "checkpoint")


def functions() -> list[Any]:
    return [sys.modules[place].main_export for place in PLACES]  # type: ignore[attr-defined]


@pytest.mark.usefixtures("optimum")
def test_it_is_idempotent_and_can_be_undone() -> None:
    own = functions()
    helium_onnx.optimum.unregister()  # of nothing
    for recipe in ("cpu-fp32", "cpu-fp32", "cpu-int4"):
        helium_onnx.optimum.register(recipe=recipe)
        assert not set(functions()) & set(own)
    helium_onnx.optimum.unregister()
    assert functions() == own
    helium_onnx.optimum.unregister()
    assert functions() == own


def test_other_models_are_optimums(optimum: list[Any], exports: list[Any], checkpoint: Path, tmp_path: Path) -> None:
    helium_onnx.optimum.register()
    for i, (name, changes) in enumerate(
        (("gpt2", {"model_type": "gpt2"}), ("llama", {"model_type": "llama"}), ("nothing", {}))
    ):
        folder = tmp_path / name
        folder.mkdir()
        if changes:
            tiny.write_json(folder / "config.json", changes)
        assert functions()[i](str(folder), tmp_path / "out", task="auto", batch_size=3) == "optimum's"
        assert optimum[-1] == (str(folder), tmp_path / "out", "auto", {"batch_size": 3})
    assert exports == []
    helium_onnx.optimum.register(model_types=["llama"])
    with pytest.raises(UsageError, match="far enough"):
        functions()[0](str(tmp_path / "llama"), tmp_path / "out")
    assert functions()[0](str(checkpoint), tmp_path / "out") == "optimum's"


@pytest.mark.parametrize(
    ("task", "ours"),
    [
        ("auto", "auto"),
        ("text-generation", "text-generation"),
        ("causal-lm-with-past", "text-generation"),
        ("feature-extraction", "feature-extraction"),
        ("text-classification", "text-classification"),
        ("token-classification", "token-classification"),
    ],
)
@pytest.mark.usefixtures("optimum")
def test_what_is_asked_of_export(task: str, ours: str, exports: list[dict[str, Any]], checkpoint: Path) -> None:
    helium_onnx.optimum.register(recipe="cpu-int4-fast")
    out = checkpoint.parent / "out"
    with pytest.raises(UsageError, match="far enough"):
        functions()[2](str(checkpoint), out, task, revision="main", do_validation=False, local_files_only=True)
    (asked,) = exports
    assert asked.pop("recipe").name == "cpu-int4-fast"
    assert asked == {"checkpoint": str(checkpoint), "task": ours, "revision": None, "offline": True}
    assert list(out.iterdir()) == []  # no scratch folder is left


@pytest.mark.usefixtures("optimum")
def test_a_subfolder_of_a_folder(exports: list[dict[str, Any]], checkpoint: Path) -> None:
    helium_onnx.optimum.register()
    with pytest.raises(UsageError, match="far enough"):
        functions()[0](str(checkpoint.parent), checkpoint.parent / "out", subfolder="checkpoint")
    assert exports[0]["checkpoint"] == str(checkpoint)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"dtype": "fp16"}, "dtype='fp16'"),
        ({"opset": 17}, "opset=17"),
        ({"opset": 17, "dtype": "bf16"}, "opset=17, dtype='bf16'"),
        ({"task": "feature-extraction-with-past"}, "'feature-extraction-with-past'"),
        ({"task": "question-answering"}, "'question-answering'"),
    ],
)
@pytest.mark.usefixtures("optimum")
def test_what_our_graphs_cannot_be_is_refused(
    options: dict[str, Any], found: str, exports: list[Any], checkpoint: Path
) -> None:
    helium_onnx.optimum.register()
    with pytest.raises(UsageError) as caught:
        functions()[0](str(checkpoint), checkpoint.parent / "out", **options)
    assert caught.value.found == found
    assert exports == []
    assert not (checkpoint.parent / "out").exists()
    for accepted in ({"dtype": "fp32"}, {"cache_dir": "another"}, {"batch_size": 1}):
        with pytest.raises(UsageError, match="far enough"):
            functions()[0](str(checkpoint), checkpoint.parent / "out", **accepted)


@pytest.mark.usefixtures("optimum")
def test_what_register_refuses_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    own = functions()
    with pytest.raises(RecipeError, match="cpu-int44"):
        helium_onnx.optimum.register(recipe="cpu-int44")
    for wrong in ("helium", ["gpt2"], ["helium", "mistral"]):
        with pytest.raises(UsageError, match="model_types"):
            helium_onnx.optimum.register(model_types=wrong)
    monkeypatch.delattr(sys.modules[PLACES[-1]], "main_export")
    with pytest.raises(
        MissingDependencyError, match=r"which has main_export in optimum\.onnxruntime\.modeling_decoder"
    ):
        helium_onnx.optimum.register()
    assert [sys.modules[place].main_export for place in PLACES[:-1]] == own[:-1]  # type: ignore[attr-defined]


def test_without_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optimum", None)  # not to be imported, wherever it may be installed
    with pytest.raises(MissingDependencyError, match=r"optimum-onnx 0\.1\.0") as caught:
        helium_onnx.optimum.register()
    assert "helium-onnx[optimum]" in str(caught.value.remedy)
    code = (
        "import runpy, sys; sys.modules['optimum'] = None; runpy.run_module('helium_onnx.optimum', run_name='__main__')"
    )
    done = subprocess.run([PROGRAM[0], "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_importing_it_loads_no_framework() -> None:
    heavy = ("torch", "numpy", "onnx", "onnxruntime", "transformers", "optimum")
    code = f"import helium_onnx.optimum, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([PROGRAM[0], "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_each_task_has_a_class_and_a_name_of_optimums() -> None:
    from helium_onnx.tasks import TASKS

    assert set(CLASSES) == set(TASKS) == set(helium_onnx.optimum._TASKS.values()) - {"auto"}
