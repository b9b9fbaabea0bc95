"""Recipes: those that are shipped, and every way in which one's own can be wrong."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from helium_onnx import recipe as module
from helium_onnx.errors import RecipeError
from helium_onnx.recipe import (
    GraphSettings,
    MatrixSettings,
    Quantization,
    Recipe,
    list_recipes,
    load_recipe,
    recipe_folder,
)

DOCUMENTATION = Path(__file__).parents[1] / "export" / "README.md"
SHIPPED = sorted(path.stem for path in recipe_folder().glob("*.toml"))


def own(tmp_path: Path, text: str | bytes, name: str = "mine.toml") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(path: object) -> RecipeError:
    """The error of loading it: with what was found or expected, or a remedy."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)  # type: ignore[arg-type]
    assert caught.value.found or caught.value.expected or caught.value.remedy
    return caught.value


# Shipped


def test_all_shipped_recipes_are_listed() -> None:
    assert [recipe.name for recipe in list_recipes()] == SHIPPED
    assert {"cpu-fp32", "cpu-int4", "cpu-int8", "portable-fp32"} <= set(SHIPPED)
    assert {"cuda-fp16", "cuda-bf16", "cuda-int4"} <= set(SHIPPED)
    assert len({recipe.summary for recipe in list_recipes()}) == len(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_goes_to_json_and_back(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.summary and "\n" not in recipe.summary
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())), source="json") == recipe
    assert load_recipe(recipe) == recipe


def test_the_default_recipe_quantizes_everything() -> None:
    quantization = load_recipe("cpu-int4").quantization
    assert quantization.linear.bits == 4
    assert all(getattr(quantization, kind).quantized for kind in ("linear", "head", "embedding"))


# One's own


def test_the_path_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
    summary = "mine"
    [quantization]
    method = "round-to-nearest"
    [quantization.linear]
    bits = 8
    """
    path = own(tmp_path, text, "my-recipe.toml")
    expected = Recipe(
        name="my-recipe",
        summary="mine",
        quantization=Quantization(method="round-to-nearest", linear=MatrixSettings(bits=8)),
    )
    monkeypatch.chdir(tmp_path)
    for given in (path, str(path), "my-recipe.toml", "./my-recipe.toml"):
        assert load_recipe(given) == expected


def test_a_summary_is_enough(tmp_path: Path) -> None:
    assert load_recipe(own(tmp_path, 'summary = "plain"')) == Recipe(name="mine", summary="plain")


def test_a_shipped_name_wins_over_a_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own(tmp_path, 'summary = "another"', "cpu-int4")
    monkeypatch.chdir(tmp_path)
    assert load_recipe("cpu-int4").summary != "another"
    assert load_recipe("./cpu-int4").summary == "another"


# What is refused


@pytest.mark.parametrize("name", ["cpu-int5", "", "none", "a/b.toml", "\0", "x" * 5000, "cpu-int4.tml"])
def test_an_unknown_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = refused(name)
    assert all(shipped in str(error.expected) for shipped in SHIPPED)
    assert "helium-onnx recipes" in str(error.remedy)
    assert ("did you mean 'cpu-int" in str(error.remedy)) == name.startswith("cpu-int")


def test_a_directory(tmp_path: Path) -> None:
    assert str(tmp_path) in refused(tmp_path).what


@pytest.mark.parametrize(
    ("text", "what", "more"),
    [
        # Keys
        ('sumary = "s"', "unknown key 'sumary'", "did you mean 'summary'?"),
        ('summary = "s"\n[quantisation]', "unknown key 'quantisation'", "did you mean 'quantization'?"),
        ('summary = "s"\n[quantization.linear]\nblocksize = 32', "unknown key 'quantization.linear.blocksize'",
         "did you mean 'block_size'?"),
        ('summary = "s"\n[graph]\nzzz = 1', "unknown key 'graph.zzz'", "export/README.md"),
        ('summary = "s"\nname = "n"', "unknown key 'name'", "remove the key"),
        ("", "key 'summary' is missing", "export/README.md"),
        ('[graph]\noperators = "standard"', "key 'summary' is missing", "export/README.md"),
        # Types
        ("summary = 1", "'summary' has the wrong type", "str"),
        ('summary = ["s"]', "'summary' has the wrong type", "str"),
        ("summary = 2026-01-01", "'summary' has the wrong type", "str"),
        ('summary = "s"\ngraph = "standard"', "[graph] is no table", "a TOML table"),
        ('summary = "s"\n[[graph]]\noperators = "standard"', "[graph] is no table", "a TOML table"),
        ('summary = "s"\n[quantization.linear]\nsymmetric = 1', "'quantization.linear.symmetric' has the wrong type",
         "bool"),
        ('summary = "s"\n[quantization.linear]\nsymmetric = "true"',
         "'quantization.linear.symmetric' has the wrong type", "bool"),
        # Values
        ('summary = "s"\n[quantization]\naccuracy_level = true', "'quantization.accuracy_level' has no such value",
         "one of 0, 1, 4"),
        ('summary = "s"\n[quantization.linear]\nbits = 4.0', "'quantization.linear.bits' has no such value",
         "one of 2, 4, 8, 32"),
        ('summary = "s"\n[quantization.linear]\nbits = 3', "'quantization.linear.bits' has no such value",
         "one of 2, 4, 8, 32"),
        ('summary = "s"\n[quantization.linear]\nbits = nan', "'quantization.linear.bits' has no such value", "nan"),
        ('summary = "s"\n[quantization.linear]\nblock_size = [32]',
         "'quantization.linear.block_size' has no such value", "[32]"),
        ('summary = "s"\nexecution_provider = "CPU"', "'execution_provider' has no such value", "one of 'cpu', 'cuda'"),
        ('summary = "s"\n[precision]\ncompute = "float64"', "'precision.compute' has no such value", "'float32'"),
        ('summary = "s"\n[precision]\nkey_value_cache = "int4"', "'precision.key_value_cache' has no such value",
         "'float32', 'float16', 'bfloat16', 'int8'"),
        # Combinations
        *(
            (f'summary = "s"\n[graph]\noperators = "standard"\n[precision]\nkey_value_cache = "{cache}"',
             f"a key/value cache in {cache} needs ONNX Runtime's operator", 'graph.operators = "onnxruntime"')
            for cache in ("float16", "int8")
        ),
        ('summary = "s"\n[quantization.head]\nbits = 8', "[quantization.head] has no method", "round-to-nearest"),
        ('summary = "s"\n[quantization]\nmethod = "none"\n[quantization.linear]\nbits = 4',
         "[quantization.linear] has no method", "round-to-nearest"),
        ('summary = "s"\n[graph]\noperators = "standard"\n[quantization]\nmethod = "round-to-nearest"\n'
         "[quantization.embedding]\nbits = 4", "need ONNX Runtime's operators", 'graph.operators = "onnxruntime"'),
        # Not TOML
        ("summary", "is not TOML", "export/README.md"),
        ('summary = "a"\nsummary = "b"', "is not TOML", "export/README.md"),
        (b"\x00\xff\xfe\x80PK", "is not TOML", "export/README.md"),
        (b"PK\x03\x04" + bytes(range(256)), "is not TOML", "export/README.md"),
        ("summary = " + "[" * 20_000, "is not TOML", "export/README.md"),
        ("summary = " + "9" * 5_000, "is not TOML", "export/README.md"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str | bytes, what: str, more: str) -> None:
    path = own(tmp_path, text)
    error = refused(path)
    assert what in error.what
    assert str(path) in error.what
    assert more in str(error)
    assert len(str(error)) < 1000


def test_a_recipe_made_in_python_is_checked_too() -> None:
    """Dataclasses take any value: what no kernel runs must not get as far as the trace."""
    for wrong in (
        Recipe("mine", "s", quantization=Quantization(linear=MatrixSettings(bits=4))),
        Recipe("mine", "s", quantization=Quantization("round-to-nearest", linear=MatrixSettings(bits=5))),  # type: ignore[arg-type]
        Recipe("mine", "s", quantization=Quantization("round-to-nearest", 4, MatrixSettings(4, 48))),  # type: ignore[arg-type]
        Recipe("mine", "s", graph=GraphSettings("fast")),  # type: ignore[arg-type]
        Recipe("mine", "s", graph="standard"),  # type: ignore[arg-type]
    ):
        assert "mine" in refused(wrong).what


@pytest.mark.parametrize("raw", [{}, {"name": "n"}, {"name": 1, "summary": "s"}, [], None, "cpu-int4"])
def test_a_manifests_recipe_that_is_none(raw: object) -> None:
    with pytest.raises(RecipeError, match=r"helium\.json"):
        Recipe.from_dict(raw, source="helium.json")  # type: ignore[arg-type]


# Documentation


def keys(kind: type, where: str = "") -> Iterator[tuple[str, str]]:
    """(table, key) of every setting that a TOML file can have."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        inner = hints[field.name]
        if dataclasses.is_dataclass(inner):
            assert isinstance(inner, type)
            yield from keys(inner, f"{where}.{field.name}".strip("."))
        elif (where, field.name) != ("", "name"):
            yield where, field.name


def documented(text: str, table: str, key: str) -> bool:
    """``table.key`` stands there, or ``key`` in a part of the text that follows ``[table]``."""
    full = f"{table}.{key}".strip(".")
    if re.search(rf"(?<![\w.]){re.escape(full)}(?![\w.])", text):
        return True
    parts = re.split(r"\[([a-z_.]+)\]", text)
    after = zip(["", *parts[1::2]], parts[::2], strict=True)
    return any(name == table and re.search(rf"(?<![\w.]){key}(?![\w.])", part) for name, part in after)


@pytest.mark.parametrize(("table", "key"), list(keys(Recipe)), ids=lambda value: value or "top")
def test_every_key_is_documented(table: str, key: str) -> None:
    assert documented(DOCUMENTATION.read_text(encoding="utf-8"), table, key), f"{DOCUMENTATION}: no {table}.{key}"


@pytest.mark.parametrize("cache", ["float32", "float16", "int8"])
def test_a_recipe_of_each_cache(tmp_path: Path, cache: str) -> None:
    recipe = load_recipe(own(tmp_path, f'summary = "s"\n[precision]\nkey_value_cache = "{cache}"'))
    assert recipe.precision.key_value_cache == cache
    assert Recipe.from_dict(recipe.to_dict(), source="again") == recipe


def test_the_keys_are_those_of_the_dataclasses() -> None:
    found = {".".join(filter(None, pair)) for pair in keys(Recipe)}
    assert {"summary", "execution_provider", "graph.operators", "precision.compute"} <= found
    assert {"quantization.method", "quantization.linear.block_size", "quantization.embedding.symmetric"} <= found
    assert "name" not in found


def test_a_wheel_has_its_recipes_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "helium_onnx"
    (package / "recipes").mkdir(parents=True)
    monkeypatch.setattr(module, "__file__", str(package / "recipe.py"))
    assert recipe_folder() == package / "recipes"


# Overrides

MIXED = """summary = "s"
[quantization]
method = "gptq"
[quantization.linear]
bits = 4
block_size = 64
symmetric = false
[[quantization.overrides]]
match = "model.layers.*.self_attn.[kv]_proj"
bits = 8
[[quantization.overrides]]
match = "model.layers.2.*"
block_size = 32
[[quantization.overrides]]
match = "lm_head"
bits = 2
"""


def test_overrides_change_what_they_name_and_later_ones_win(tmp_path: Path) -> None:
    settings = load_recipe(own(tmp_path, MIXED)).quantization.settings_of
    assert settings("model.layers.0.self_attn.q_proj.weight") == MatrixSettings(4, 64, False)
    assert settings("model.layers.0.self_attn.v_proj.weight") == MatrixSettings(8, 64, False)
    assert settings("model.layers.2.self_attn.k_proj") == MatrixSettings(8, 32, False)
    assert settings("model.layers.2.mlp.up_proj.weight") == MatrixSettings(4, 32, False)
    assert settings("lm_head.weight") == MatrixSettings(2, 32, True)
    assert settings("model.embed_tokens.weight") == MatrixSettings()


def test_a_recipe_with_overrides_goes_to_json_and_back(tmp_path: Path) -> None:
    recipe = load_recipe(own(tmp_path, MIXED))
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())), source="json") == recipe


def test_an_override_that_matches_nothing_names_what_is_near(tmp_path: Path) -> None:
    recipe = load_recipe(own(tmp_path, MIXED.replace("[kv]_proj", "v_prj")))
    names = [f"model.layers.{i}.self_attn.{x}_proj.weight" for i in range(3) for x in "qkvo"] + ["lm_head.weight"]
    with pytest.raises(RecipeError, match="v_prj") as caught:
        recipe.quantization.check_overrides(names)
    assert "self_attn.v_proj" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("bits = 8", "bits = 3"), "overrides\\[0\\].bits"),
        (('match = "lm_head"', 'match = 5\ncolour = "red"'), "overrides\\[2\\]"),
        (('match = "lm_head"\n', ""), "overrides\\[2\\].match"),
        (('method = "gptq"', 'method = "none"'), "has no method"),
        (('method = "gptq"', 'method = "gptq"\ncalibration_tokens = -1'), "calibration_tokens"),
    ],
)
def test_overrides_that_say_nothing(change: tuple[str, str], what: str, tmp_path: Path) -> None:
    assert re.search(what, str(refused(own(tmp_path, MIXED.replace(*change)))))


def test_overrides_are_an_array(tmp_path: Path) -> None:
    text = 'summary = "s"\n[quantization]\noverrides = 3'
    assert "overrides" in str(refused(own(tmp_path, text)))


def test_every_shipped_recipe_has_a_row_in_the_documentation() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| .*\| .*\| .*\|$", DOCUMENTATION.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(set(rows) & set(SHIPPED)) == SHIPPED
