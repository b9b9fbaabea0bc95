"""Recipes: what graph form, which precision, which quantization. TOML in, frozen dataclasses out.

``export/README.md`` documents every key. A key that is not documented there is an error here.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import math
import os
import tomllib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from helium_onnx import recipe_rules
from helium_onnx.contract import Window
from helium_onnx.errors import RecipeError

Operators = Literal["onnxruntime", "standard", "opset-23"]
Method = Literal["none", "round-to-nearest", "hqq", "k-quant", "gptq"]
Bits = Literal[2, 4, 8, 32]
BlockSize = Literal[16, 32, 64, 128, 256]
Scales = Literal["float32", "float16", "bfloat16"]
Provider = Literal["cpu", "cuda", "qnn", "coreml"]
Compute = Literal["float32", "float16", "bfloat16"]
Cache = Literal["float32", "float16", "bfloat16", "int8"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class GraphSettings:
    """``operators``: ``onnxruntime`` uses its fused ``com.microsoft`` operators, ``standard`` only ``ai.onnx`` of set
    18, ``opset-23`` the fused ``ai.onnx`` operators of that set (and ``MatMulNBits`` for quantized weights).

    ``context`` and ``prefill_chunk`` fix the shapes of prefill and decode: slots for keys and values, and the tokens
    of one prefill. Both are 0 where shapes are those of the call.
    """

    operators: Operators = "onnxruntime"
    context: int = 0
    prefill_chunk: int = 0

    def window(self, max_position_embeddings: int) -> Window | None:
        """The fixed sizes for a model of so many positions, which bound the context; None where shapes are free."""
        if not self.context:
            return None
        context = min(self.context, max_position_embeddings)
        return Window(context, min(self.prefill_chunk, context))


@dataclass(frozen=True)
class Precision:
    """Types of activations and of the key/value cache; weights that are not quantized are stored in ``compute``."""

    compute: Compute = "float32"
    key_value_cache: Cache = "float32"


@dataclass(frozen=True)
class MatrixSettings:
    """How a kind of matrix is stored. ``bits`` 32 means not quantized: in the type of ``precision.compute``, and the
    other settings then have no effect.

    ``block_size`` weights along a row share one scale (and, unless ``symmetric``, one zero point), which is stored as
    ``scales`` says. 2 bits are experimental: few models keep their sense.
    """

    bits: Bits = 32
    block_size: BlockSize = 32
    symmetric: bool = True
    scales: Scales = "float32"

    @property
    def quantized(self) -> bool:
        return self.bits != 32


@dataclass(frozen=True)
class Override:
    """Other settings for the matrices whose name ``match`` fits; what is None stays as their kind has it.

    ``match`` is a pattern of the shell over the checkpoint's names without ``.weight``:
    ``model.layers.*.self_attn.v_proj``, ``model.layers.[0-3].mlp.*``, ``lm_head``.
    """

    match: str
    bits: Bits | None = None
    block_size: BlockSize | None = None
    symmetric: bool | None = None
    scales: Scales | None = None


@dataclass(frozen=True)
class Quantization:
    """``method`` chooses scales; ``linear``, ``head`` and ``embedding`` say how each kind of matrix is stored.

    ``accuracy_level`` is that of ``MatMulNBits``: 1 computes in float32, 4 with activations rounded to int8 (fast), 0
    as the kernel chooses.
    ``calibration_tokens`` of text are shown to the model where the method looks at activations; 0 lets the model's
    size decide. Of several ``overrides`` that fit a matrix, later ones win.
    """

    method: Method = "none"
    accuracy_level: Literal[0, 1, 4] = 4
    linear: MatrixSettings = MatrixSettings()
    head: MatrixSettings = MatrixSettings()
    embedding: MatrixSettings = MatrixSettings()
    calibration_tokens: int = 0
    overrides: tuple[Override, ...] = ()

    def settings_of(self, name: str) -> MatrixSettings:
        """How the checkpoint's matrix ``name`` (``lm_head.weight``) is stored; a classifier's, a few rows, as it is."""
        plain = name.removesuffix(".weight")
        if plain == "score":
            return MatrixSettings()
        kind = {"model.embed_tokens": self.embedding, "lm_head": self.head}
        settings = kind.get(plain, self.linear)
        for override in self.overrides:
            if fnmatch.fnmatchcase(plain, override.match.removesuffix(".weight")):
                changes = {key: value for key, value in vars(override).items() if key != "match" and value is not None}
                settings = dataclasses.replace(settings, **changes)
        return settings

    @property
    def calibrated(self) -> bool:
        """Whether the method cannot do without calibration text."""
        return self.method == "gptq"

    def check_overrides(self, names: Sequence[str]) -> None:
        """Raise RecipeError for an override that fits none of the checkpoint's matrices, ``names``."""
        plain = [name.removesuffix(".weight") for name in names]
        for override in self.overrides:
            if not fnmatch.filter(plain, override.match.removesuffix(".weight")):
                near = difflib.get_close_matches(override.match, plain, n=3, cutoff=0.3)
                raise RecipeError(
                    f"the override {override.match!r} matches no matrix of this model",
                    expected="a pattern over names such as model.layers.0.mlp.down_proj (* for any text)",
                    remedy=f"nearest: {', '.join(near)}" if near else f"names are as {plain[0]}",
                )


@dataclass(frozen=True)
class Recipe:
    """One target. ``name`` is the file's; ``summary`` says in one line why one would choose it."""

    name: str
    summary: str
    execution_provider: Provider = "cpu"
    graph: GraphSettings = GraphSettings()
    precision: Precision = Precision()
    quantization: Quantization = Quantization()

    def to_dict(self) -> dict[str, Any]:
        """The resolved recipe, as the manifest keeps it: what JSON has, and nothing else."""
        plain = dataclasses.asdict(self)
        plain["quantization"]["overrides"] = list(plain["quantization"]["overrides"])
        return plain

    @classmethod
    def from_dict(cls, raw: dict[str, Any], *, source: str) -> Recipe:
        """The inverse of :meth:`to_dict`."""
        recipe = _build(cls, raw, source, "")
        recipe_rules.check(recipe, source)
        return recipe

    def check_matrices(self, names: Sequence[str]) -> None:
        """Raise RecipeError for what only the checkpoint's matrices, ``names``, show to be wrong: an override that
        fits none of them, or a matrix that overrides store in a way that the provider does not take.
        """
        self.quantization.check_overrides(names)
        recipe_rules.check_matrices(self, names)


def recipe_folder() -> Path:
    """Where the shipped recipes are: ``helium_onnx/recipes`` in a wheel, ``export`` in a checkout."""
    packaged = Path(__file__).parent / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "export"


def list_recipes() -> tuple[Recipe, ...]:
    """The shipped recipes, by name."""
    return tuple(load_recipe(path) for path in sorted(recipe_folder().glob("*.toml"), key=lambda path: path.stem))


def load_recipe(name_or_path: str | os.PathLike[str] | Recipe) -> Recipe:
    """A shipped recipe by its name, or one's own by the path of its TOML file.

    Raises RecipeError when there is none, when it is not TOML, or for an unknown key or value.
    """
    if isinstance(name_or_path, Recipe):
        # Dataclasses take any value, so one made in Python is read as strictly as a file.
        return Recipe.from_dict(name_or_path.to_dict(), source=f"recipe {name_or_path.name}")
    text = os.fspath(name_or_path)
    shipped = sorted(path.stem for path in recipe_folder().glob("*.toml"))
    path = Path(text)
    if text in shipped:
        path = recipe_folder() / f"{text}.toml"
    elif not os.path.isfile(path):  # noqa: PTH113  Path.is_file raises for a name that is too long
        near = difflib.get_close_matches(text, shipped, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise RecipeError(
            f"there is no recipe {text!r}",
            expected=f"one of {', '.join(shipped)}, or the path of a TOML file",
            remedy=f"{hint}`helium-onnx recipes` lists them",
        )
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # beside TOMLDecodeError: no UTF-8, a number of 5000 digits, a nest
        raise RecipeError(f"{path} is not TOML", found=error, remedy="see export/README.md for the keys") from error
    except OSError as error:
        raise RecipeError(f"{path} cannot be read", found=error.strerror) from error
    if "name" in raw:
        raise RecipeError(f"{path}: unknown key 'name'", remedy="a recipe is named by its file: remove the key")
    return Recipe.from_dict({"name": path.stem, **raw}, source=str(path))


def _build(kind: type[_T], raw: object, source: str, where: str) -> _T:
    """A dataclass of ``kind`` from a TOML table; ``where`` is the table's name for messages."""
    if not isinstance(raw, dict):
        raise RecipeError(f"{source}: [{where}] is no table", found=repr(raw), expected="a TOML table")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in raw.items():
        full = f"{where}.{key}" if where else key
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            raise RecipeError(
                f"{source}: unknown key '{full}'",
                expected=f"one of {', '.join(fields)}",
                remedy=f"did you mean '{near[0]}'?" if near else "see export/README.md",
            )
        values[key] = _value(hints[key], value, source, full)
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        key = f"{where}.{missing[0]}" if where else missing[0]
        raise RecipeError(f"{source}: key '{key}' is missing", remedy="see export/README.md")
    return kind(**values)


def _value(hint: Any, value: object, source: str, where: str) -> object:
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type[object], hint), value, source, where)
    if typing.get_origin(hint) is tuple:  # an array of tables
        if not isinstance(value, (list, tuple)):
            raise RecipeError(f"{source}: '{where}' is no array", found=repr(value), expected=f"[[{where}]] tables")
        inner = typing.get_args(hint)[0]
        return tuple(_value(inner, item, source, f"{where}[{i}]") for i, item in enumerate(value))
    if types.NoneType in typing.get_args(hint):  # as to_dict writes what an override leaves alone
        if value is None:
            return None
        (hint,) = set(typing.get_args(hint)) - {types.NoneType}
        return _value(hint, value, source, where)
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        # True == 1 in Python, so the type is compared too.
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise RecipeError(
                f"{source}: '{where}' has no such value", found=repr(value), expected=f"one of {_listed(choices)}"
            )
        return value
    assert isinstance(hint, type) and not isinstance(hint, types.GenericAlias)
    if type(value) is not hint or (isinstance(value, float) and not math.isfinite(value)):
        raise RecipeError(f"{source}: '{where}' has the wrong type", found=repr(value), expected=hint.__name__)
    return value


def _listed(choices: tuple[object, ...]) -> str:
    return ", ".join(map(repr, choices))
