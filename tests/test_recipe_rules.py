"""What recipes combine wrongly: what each execution provider takes, and that the error names the value to set."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from helium_onnx.contract import Window
from helium_onnx.errors import RecipeError
from helium_onnx.recipe import (
    GraphSettings,
    MatrixSettings,
    Override,
    Precision,
    Quantization,
    Recipe,
    list_recipes,
    load_recipe,
)
from helium_onnx.recipe_rules import TARGETS

CUDA = "summary = 's'\nexecution_provider = 'cuda'\n"
HALF = "[precision]\ncompute = 'float16'\nkey_value_cache = 'float16'\n"
BRAIN = HALF.replace("float16", "bfloat16")
QNN = "summary = 's'\nexecution_provider = 'qnn'\n"
COREML = "summary = 's'\nexecution_provider = 'coreml'\n"
FIXED = "[graph]\noperators = 'opset-23'\ncontext = 64\nprefill_chunk = 16\n"
PLAIN = FIXED.replace("opset-23", "standard")
ROUNDED = "[quantization]\nmethod = 'round-to-nearest'\naccuracy_level = 0\n"
FOUR = "bits = 4\nscales = 'float16'\n"


def read(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return load_recipe(path)


def refused(tmp_path: Path, text: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, text)
    error = caught.value
    assert "mine.toml" in error.what
    assert error.found and error.expected and error.remedy
    return error


def test_every_provider_has_a_shipped_recipe() -> None:
    assert {recipe.execution_provider for recipe in list_recipes()} == set(TARGETS)
    cuda = [recipe.name for recipe in list_recipes() if recipe.execution_provider == "cuda"]
    assert cuda == ["cuda-bf16", "cuda-fp16", "cuda-int4"]
    qnn = [recipe.name for recipe in list_recipes() if recipe.execution_provider == "qnn"]
    assert qnn == ["qnn-fp16", "qnn-int4"]
    coreml = [recipe.name for recipe in list_recipes() if recipe.execution_provider == "coreml"]
    assert coreml == ["coreml-fp16"]


@pytest.mark.parametrize(
    "text",
    [
        CUDA + HALF,
        CUDA + BRAIN,
        CUDA + HALF.replace("cache = 'float16'", "cache = 'int8'"),
        CUDA + BRAIN.replace("cache = 'bfloat16'", "cache = 'int8'"),
        CUDA + HALF + ROUNDED,
        CUDA + HALF + ROUNDED + "[quantization.linear]\n" + FOUR,
        CUDA + HALF + ROUNDED + "[quantization.head]\nbits = 8\nscales = 'float16'\n",
        CUDA + BRAIN + ROUNDED + "[quantization.head]\nbits = 8\nscales = 'bfloat16'\n",
        CUDA + HALF + "[graph]\noperators = 'onnxruntime'\n",
        QNN + FIXED + HALF,
        QNN + FIXED.replace("chunk = 16", "chunk = 64") + HALF,
        QNN + FIXED + HALF + ROUNDED + "[quantization.linear]\n" + FOUR,
        QNN + FIXED + HALF + ROUNDED + "[[quantization.overrides]]\nmatch = 'lm_head'\n" + FOUR,
        # What is not quantized has no scales, and accuracy_level then means nothing.
        CUDA + HALF + "[quantization.linear]\nscales = 'float32'\n",
        CUDA + HALF + ROUNDED + "[[quantization.overrides]]\nmatch = 'lm_head'\nbits = 32\n",
    ],
)
def test_what_cuda_takes(tmp_path: Path, text: str) -> None:
    recipe = read(tmp_path, text)
    assert Recipe.from_dict(recipe.to_dict(), source="again") == recipe


@pytest.mark.parametrize(
    ("text", "what", "found", "remedy"),
    [
        # The type of activations
        (CUDA, "cuda does not compute in float32", 'precision.compute = "float32"', 'execution_provider = "cpu"'),
        (CUDA + HALF.replace("compute = 'float16'", "compute = 'float32'"), "does not compute in float32",
         "float32", '"cpu"'),
        ("summary = 's'\n" + HALF, "cpu does not compute in float16", 'precision.compute = "float16"',
         'execution_provider = "cuda"'),
        ("summary = 's'\n" + BRAIN, "cpu does not compute in bfloat16", "bfloat16", '"cuda"'),
        # Of the cache
        (CUDA + HALF.replace("cache = 'float16'", "cache = 'float32'"), "does not take this key_value_cache",
         'precision.key_value_cache = "float32"', 'set key_value_cache = "float16"'),
        (CUDA + HALF.replace("cache = 'float16'", "cache = 'bfloat16'"), "does not take this key_value_cache",
         "bfloat16", '"float16"'),
        (CUDA + BRAIN.replace("cache = 'bfloat16'", "cache = 'float16'"), "does not take this key_value_cache",
         '"float16"', '"bfloat16"'),
        (CUDA + "[precision]\ncompute = 'float16'\n", "does not take this key_value_cache", "float32", '"float16"'),
        ("summary = 's'\n[precision]\nkey_value_cache = 'bfloat16'\n", "does not take this key_value_cache",
         "bfloat16", '"float32"'),
        # Operators
        (CUDA + HALF + "[graph]\noperators = 'standard'\n", "does not take this operators",
         'graph.operators = "standard"', 'set operators = "onnxruntime"'),
        # Scales
        (CUDA + HALF + ROUNDED + "[quantization.linear]\nbits = 4\n", "does not take this scales",
         'quantization.linear.scales = "float32"', 'set scales = "float16"'),
        (CUDA + HALF + ROUNDED + "[quantization.head]\nbits = 4\nscales = 'bfloat16'\n", "does not take this scales",
         'quantization.head.scales = "bfloat16"', 'set scales = "float16"'),
        (CUDA + BRAIN + ROUNDED + "[quantization.embedding]\n" + FOUR, "does not take this scales",
         'quantization.embedding.scales = "float16"', 'set scales = "bfloat16"'),
        ("summary = 's'\n" + ROUNDED + "[quantization.linear]\nbits = 4\nscales = 'bfloat16'\n",
         "does not take this scales", "bfloat16", '"float32"'),
        (CUDA + HALF + ROUNDED + "[[quantization.overrides]]\nmatch = 'lm_head'\nscales = 'float32'\n",
         "does not take this scales", 'quantization.overrides[0].scales = "float32"', '"float16"'),
        # Shapes
        (QNN + FIXED.replace("'opset-23'", "'standard'") + HALF, "does not take this operators", "standard",
         'set operators = "opset-23"'),
        (CUDA + HALF + FIXED, "does not take this operators", "opset-23", 'set operators = "onnxruntime"'),
        (CUDA + HALF + "[graph]\ncontext = 64\n", "have no fixed shapes", "graph.context = 64", "qnn"),
        ("summary = 's'\n[graph]\nprefill_chunk = 64\n", "have no fixed shapes", "graph.prefill_chunk = 64", "qnn"),
        (QNN + HALF + "[graph]\noperators = 'opset-23'\n", "and no context", "graph.context = 0", "1024"),
        (QNN + HALF + FIXED.replace("context = 64", "context = -1"), "and no context", "graph.context = -1", "1024"),
        (QNN + HALF + FIXED.replace("chunk = 16", "chunk = 0"), "prefill_chunk is out of range", "= 0", "= 64"),
        (QNN + HALF + FIXED.replace("chunk = 16", "chunk = 65"), "prefill_chunk is out of range", "= 65", "= 64"),
        (QNN + FIXED, "qnn does not compute in float32", "float32", '"cpu"'),
        (QNN + FIXED + HALF + ROUNDED + "[quantization.embedding]\n" + FOUR, "takes no quantized embedding",
         "quantization.embedding", "bits = 32"),
        (QNN + FIXED + HALF + ROUNDED + "[quantization.head]\nbits = 8\nscales = 'float16'\n",
         "does not take this bits", "quantization.head.bits = 8", "set bits = 4"),
        (COREML + FIXED + HALF, "does not take this operators", "opset-23", '"standard"'),
        (COREML + PLAIN + HALF + ROUNDED + "[quantization.head]\n" + FOUR, "takes no quantized head",
         "quantization.head", "bits = 32"),
        (COREML + PLAIN + HALF + ROUNDED + "[[quantization.overrides]]\nmatch = 'lm_head'\nbits = 4\n",
         "does not take this bits", "quantization.overrides[0].bits = 4", "set bits = 32"),
        (COREML + HALF + "[graph]\noperators = 'standard'\n", "and no context", "graph.context = 0", "1024"),
        # Bits, and what MatMulNBits is told
        (CUDA + HALF + ROUNDED + "[quantization.linear]\nbits = 2\nscales = 'float16'\n", "does not take this bits",
         "quantization.linear.bits = 2", "set bits = 4"),
        (CUDA + HALF + ROUNDED + "[[quantization.overrides]]\nmatch = 'lm_head'\nbits = 2\n",
         "does not take this bits", "quantization.overrides[0].bits = 2", "set bits = 4"),
        *(
            (CUDA + HALF + ROUNDED.replace("level = 0", f"level = {level}") + "[quantization.linear]\n" + FOUR,
             "does not take this accuracy_level", f"quantization.accuracy_level = {level}", "set accuracy_level = 0")
            for level in (1, 4)
        ),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, text: str, what: str, found: str, remedy: str) -> None:
    error = refused(tmp_path, text)
    assert what in error.what
    assert found in str(error.found)
    assert remedy in str(error.remedy)


def test_a_recipe_made_in_python_is_checked_too() -> None:
    right = load_recipe("cuda-int4")
    for wrong in (
        dataclasses.replace(right, execution_provider="cpu"),
        dataclasses.replace(right, precision=Precision()),
        dataclasses.replace(right, graph=GraphSettings("standard")),
        dataclasses.replace(right, quantization=dataclasses.replace(right.quantization, accuracy_level=4)),
    ):
        with pytest.raises(RecipeError, match="recipe cuda-int4"):
            load_recipe(wrong)


NAMES = ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight"]


def test_kinds_and_overrides_together() -> None:
    """An override quantizes a kind whose table says nothing of scales."""
    recipe = Recipe(
        "mine", "s", "cuda", precision=Precision("float16", "float16"),
        quantization=Quantization(
            "round-to-nearest", 0, overrides=(Override("model.layers.*", bits=4, scales="float16"),)
        ),
    )  # fmt: skip
    load_recipe(recipe).check_matrices(NAMES)
    quantization = dataclasses.replace(recipe.quantization, overrides=(Override("model.layers.*", bits=4),))
    wrong = load_recipe(dataclasses.replace(recipe, quantization=quantization))
    with pytest.raises(RecipeError) as caught:
        wrong.check_matrices(NAMES)
    assert 'model.layers.0.mlp.up_proj.weight.scales = "float32"' in str(caught.value.found)
    # Overridden once more, it is right.
    overrides = (*quantization.overrides, Override("*up_proj", scales="float16"))
    dataclasses.replace(wrong, quantization=dataclasses.replace(quantization, overrides=overrides)).check_matrices(
        NAMES
    )


def test_an_override_that_quantizes_the_embedding_for_an_npu() -> None:
    made = load_recipe("qnn-int4")
    overrides = (Override("model.embed_tokens", bits=4, scales="float16"),)
    wrong = dataclasses.replace(made, quantization=dataclasses.replace(made.quantization, overrides=overrides))
    with pytest.raises(RecipeError, match="takes no quantized embedding") as caught:
        load_recipe(wrong).check_matrices(NAMES)
    assert "model.embed_tokens.weight" in str(caught.value.found)


@pytest.mark.parametrize(("positions", "window"), [(4096, (1024, 128)), (256, (256, 128)), (64, (64, 64))])
def test_the_window_fits_the_model(positions: int, window: tuple[int, int]) -> None:
    assert load_recipe("qnn-fp16").graph.window(positions) == Window(*window)
    assert load_recipe("cpu-fp32").graph.window(positions) is None


def test_an_override_that_matches_nothing() -> None:
    recipe = dataclasses.replace(
        load_recipe("cuda-int4"),
        quantization=Quantization("gptq", 0, MatrixSettings(4, 64, False, "float16"), overrides=(Override("mlp.*"),)),
    )
    with pytest.raises(RecipeError, match="matches no matrix"):
        recipe.check_matrices(NAMES)


def test_the_benchmarks_recipe() -> None:
    """The peer's form of int4: what its figures are compared on."""
    recipe = load_recipe(Path(__file__).parents[1] / "benchmarks" / "cuda_int4.toml")
    expected = MatrixSettings(4, 32, True, "float16")
    assert (recipe.quantization.linear, recipe.quantization.head) == (expected, expected)
    assert not recipe.quantization.embedding.quantized
    assert recipe.precision == Precision("float16", "float16")
