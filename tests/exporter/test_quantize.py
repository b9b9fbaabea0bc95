"""Quantization in a bundle: the graphs compute with the weights that the recipe's method and settings give."""

from __future__ import annotations

from pathlib import Path

import pytest
import reference
import tiny
import torch

import helium_onnx
from helium_onnx.checkpoint import Checkpoint
from helium_onnx.exporter.quantize import dequantize, hqq, k_quant, round_to_nearest, row_function
from helium_onnx.exporter.quantize.round_to_nearest import quantize_rows
from helium_onnx.modeling import HeliumForCausalLM
from helium_onnx.recipe import MatrixSettings, Quantization, Recipe


def settings(bits: int, symmetric: bool, block_size: int = 32) -> MatrixSettings:
    return MatrixSettings(bits=bits, block_size=block_size, symmetric=symmetric)  # type: ignore[arg-type]


def test_methods_are_found_by_name() -> None:
    assert row_function("round-to-nearest") is round_to_nearest.quantize_rows
    assert row_function("hqq") is hqq.quantize_rows
    assert row_function("k-quant") is k_quant.quantize_rows


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    ("linear", "head", "embedding"),
    [
        (settings(4, False), settings(4, False), settings(4, False)),
        (settings(8, True), settings(8, True), settings(8, True)),
        (settings(4, True, 16), settings(8, False, 64), MatrixSettings()),
        (MatrixSettings(), MatrixSettings(), settings(4, True, 128)),
        (settings(4, True, 128), settings(4, True, 128), settings(4, True, 128)),
    ],
    ids=["int4", "int8", "embedding float32", "embedding alone", "blocks longer than rows"],
)
def test_a_quantized_bundle_is_the_model_of_dequantized_weights(
    tie: bool, linear: MatrixSettings, head: MatrixSettings, embedding: MatrixSettings, tmp_path: Path
) -> None:
    """The whole way: accuracy_level 1 leaves no error but that of rounding weights, which the reference has too."""
    folder = tiny.write_checkpoint(tmp_path / "checkpoint", tie=tie, num_hidden_layers=1)
    recipe = Recipe(
        "mine",
        "",
        quantization=Quantization("round-to-nearest", accuracy_level=1, linear=linear, head=head, embedding=embedding),
    )
    bundle = helium_onnx.export(folder, tmp_path / "bundle", recipe=recipe)

    checkpoint = Checkpoint.open(folder)
    model = HeliumForCausalLM.from_checkpoint(checkpoint)

    def rounded(values: torch.Tensor, how: MatrixSettings) -> torch.nn.Parameter:
        x = values.numpy()
        y = dequantize(quantize_rows(x, how), how, x.shape[1]) if how.quantized else x
        return torch.nn.Parameter(torch.from_numpy(y), requires_grad=False)

    model.lm_head.weight = rounded(model.lm_head.weight.clone(), head)
    model.model.embed_tokens.weight = rounded(model.model.embed_tokens.weight.clone(), embedding)
    for layer in model.model.layers:
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight = rounded(module.weight, linear)
    ids = reference.random_ids(1, 48)
    (expected, *_) = model(torch.from_numpy(ids), torch.ones(1, 48, dtype=torch.long), model.empty_past())
    logits, _ = reference.Graphs(bundle.path, checkpoint.config, ["model"]).run("model", ids)
    assert reference.error(logits, expected.numpy()) <= reference.TOLERANCE
