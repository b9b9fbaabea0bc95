"""Let optimum export Helium by our graphs: ``register()``, and ``from_pretrained(..., export=True)`` does the rest.

optimum-onnx has a table of what it exports (``TasksManager``), but an entry there only names inputs and outputs of a
trace that optimum makes itself (exporters/onnx/convert.py, ``export_pytorch``): no graph can be handed to it. So
``register`` puts a function of the same signature in the place of ``main_export``, through which ``ORTModelFor*`` and
``optimum-cli export onnx`` go. Models of other types go on to optimum's own. docs/optimum.md has the tested versions.

    python -m helium_onnx.optimum [--recipe NAME] export onnx --model CHECKPOINT OUT    # optimum-cli, registered
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import os
import sys
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import helium_onnx
from helium_onnx.config_fields import MODEL_TYPES
from helium_onnx.contract import WEIGHTS_FILE
from helium_onnx.errors import HeliumOnnxError, MissingDependencyError, UsageError
from helium_onnx.installed import version
from helium_onnx.recipe import Recipe, load_recipe
from helium_onnx.tasks import Task

__all__ = ["register", "unregister"]

#: The modules that have ``main_export`` under a name of their own (optimum-onnx 0.1.0; optimum-cli takes the first's).
_PLACES = (
    "optimum.exporters.onnx",
    "optimum.exporters.onnx.__main__",
    "optimum.onnxruntime.modeling",
    "optimum.onnxruntime.modeling_decoder",
)
#: An attribute of our function: what it stands in the place of.
_ORIGINAL = "helium_onnx_replaces"

#: optimum's tasks, and ours. Graphs that generate take keys and values, whether optimum's caller wants them or not.
_TASKS: dict[str, Task | Literal["auto"]] = {
    "auto": "auto",
    "text-generation": "text-generation",
    "text-generation-with-past": "text-generation",
    "feature-extraction": "feature-extraction",
    "text-classification": "text-classification",
    "token-classification": "token-classification",
}

#: Arguments that would ask for another graph than the recipe's. What is neither here nor read says how optimum traces,
#: checks and loads, which is not done; code of a checkpoint is never run.
_NOT_OURS = ("opset", "optimize", "monolith", "pad_token_id", "model_kwargs", "custom_onnx_configs", "fn_get_submodels",
             "_variant", "no_dynamic_axes", "slim")  # fmt: skip
#: Arguments about the Hub that ``helium_onnx.export`` has no name for; with a folder they mean nothing.
_OF_THE_HUB = ("subfolder", "cache_dir", "token", "force_download")


def register(
    *, recipe: str | os.PathLike[str] | Recipe = "cpu-fp32", model_types: Collection[str] = ("helium",)
) -> None:
    """Let optimum export checkpoints of ``model_types`` by ``helium_onnx.export`` under ``recipe``, in this process.

    ``ORTModelForCausalLM``, ``ORTModelForFeatureExtraction``, ``ORTModelForSequenceClassification`` and
    ``ORTModelForTokenClassification``, by ``from_pretrained(CHECKPOINT, export=True)``, and ``main_export`` then write
    ``model.onnx`` of a bundle with its weights, configs and tokenizer. ``model_types`` are ``helium`` and ``llama``,
    which kyutai/helium-1-2b is: every Llama is then ours, and what is no Helium is refused. Calling it again changes
    recipe and types. Needs ``helium-onnx[optimum]``.

    Raises:
        MissingDependencyError: no optimum-onnx is installed, or one that has no ``main_export`` where 0.1.0 has it.
        RecipeError: there is no such recipe.
        UsageError: a model type that is not Helium's.
    """
    chosen, types = load_recipe(recipe), frozenset(model_types)
    if isinstance(model_types, str) or not types <= set(MODEL_TYPES):
        expected = f"some of {', '.join(MODEL_TYPES)}"
        raise UsageError("model_types cannot be used", found=repr(model_types), expected=expected)
    found = [_main_export(name) for name in _PLACES]  # all of them, before any is changed
    for module, function in found:
        vars(module)["main_export"] = _ours(getattr(function, _ORIGINAL, function), chosen, types)


def unregister() -> None:
    """Put optimum's own ``main_export`` back; nothing where ``register`` was not called."""
    for name in _PLACES:
        module = sys.modules.get(name)
        if module is not None and hasattr(function := vars(module).get("main_export"), _ORIGINAL):
            vars(module)["main_export"] = getattr(function, _ORIGINAL)


def _main_export(name: str) -> tuple[ModuleType, Callable[..., Any]]:
    """A module of optimum and its ``main_export``. Raises MissingDependencyError."""
    try:
        module = importlib.import_module(name)
        function = module.main_export
    except (ImportError, AttributeError, RuntimeError) as error:  # transformers' lazy modules raise RuntimeError
        have = ", ".join(f"{package} {version(package)}" for package in ("optimum", "optimum-onnx", "transformers"))
        raise MissingDependencyError(
            "optimum's exporter to ONNX cannot be extended here",
            found=f"{have.replace('None', 'missing')}: {error}".splitlines()[0],
            expected=f"optimum-onnx 0.1.0, which has main_export in {name}",
            remedy="pip install 'helium-onnx[optimum]' in an environment of its own: it takes transformers below 4.58",
        ) from error
    assert callable(function)
    return module, function


def _ours(original: Callable[..., Any], recipe: Recipe, model_types: frozenset[str]) -> Callable[..., Any]:
    """A ``main_export`` that keeps Heliums for us."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def main_export(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        values = call.arguments
        if _model_type(values) not in model_types:
            return original(*args, **kwargs)
        defaults = {name: parameter.default for name, parameter in signature.parameters.items()}
        return _export(values, {name for name in values if values[name] != defaults[name]}, recipe)

    setattr(main_export, _ORIGINAL, original)
    return main_export


def _model_type(values: dict[str, Any]) -> object:
    """``model_type`` of the model's config.json; None where it has none, which is optimum's to deal with."""
    from transformers import PretrainedConfig

    names = ("subfolder", "revision", "cache_dir", "token", "local_files_only", "force_download")
    try:
        config, _ = PretrainedConfig.get_config_dict(
            values["model_name_or_path"], **{name: values[name] for name in names if name in values}
        )
    except (OSError, ValueError):
        return None
    return config.get("model_type")


def _export(values: dict[str, Any], changed: set[str], recipe: Recipe) -> None:
    """What ``main_export`` does for a Helium: model.onnx, its weights and the small files, in the folder ``output``."""
    from helium_onnx.packaging.copying import small_files

    task, dtype = str(values["task"]), values.get("dtype")
    synonyms = importlib.import_module("optimum.exporters.tasks").TasksManager.map_from_synonym
    if (ours := _TASKS.get(synonyms(task))) is None:
        raise UsageError("Helium has no such task", found=repr(task), expected=", ".join(_TASKS))
    name = os.fspath(values["model_name_or_path"])
    local = Path(name).is_dir()
    refused = [one for one in _NOT_OURS if one in changed]
    refused += [one for one in _OF_THE_HUB if one in changed and not local]
    refused += ["dtype"] if dtype not in (None, "fp32") else []
    if refused:
        raise UsageError(
            f"{', '.join(refused)} cannot be chosen for Helium's graphs, which helium-onnx makes",
            found=", ".join(f"{one}={values[one]!r}" for one in refused),
            expected="optimum's defaults",
            remedy="leave it out (types and sizes of weights are a recipe's: register(recipe=...); the Hub's cache and "
            "token are HF_HOME's and HF_TOKEN's), or take optimum's own export: helium_onnx.optimum.unregister()",
        )
    checkpoint = Path(name, values.get("subfolder") or "") if local else name
    output = Path(values["output"])
    output.mkdir(parents=True, exist_ok=True)
    # Beside the files' places, so that moving them there costs nothing.
    with tempfile.TemporaryDirectory(prefix=".helium-onnx-", dir=output) as scratch:
        bundle = helium_onnx.export(
            checkpoint,
            Path(scratch, "bundle"),
            recipe=recipe,
            task=ours,
            revision=None if local else values.get("revision"),
            offline=bool(values.get("local_files_only")),
        )
        for file in (WEIGHTS_FILE, *small_files(bundle), bundle.manifest.graphs["model"].file):
            (bundle.path / file).replace(output / Path(file).name)


def main() -> None:
    """optimum-cli with ``register`` called before: its arguments, and ``--recipe`` and ``--model-types`` of our own."""
    from helium_onnx.terminal import show_error

    parser = argparse.ArgumentParser(prog="python -m helium_onnx.optimum", add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", default="cpu-fp32")
    parser.add_argument("--model-types", default="helium")
    options, rest = parser.parse_known_args()
    try:
        register(recipe=options.recipe, model_types=options.model_types.split(","))
        sys.argv = ["optimum-cli", *rest]
        importlib.import_module("optimum.commands.optimum_cli").main()
    except (HeliumOnnxError, KeyboardInterrupt) as error:  # others are optimum's, and as optimum-cli shows them
        sys.exit(show_error(error))


if __name__ == "__main__":
    main()
