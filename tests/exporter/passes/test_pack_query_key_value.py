"""PackQueryKeyValue: one matrix for three, whose product the fused attention takes as it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import graph_making
import numpy as np
import onnx_ir as ir
import pytest
import tiny
import torch

import helium_onnx
from helium_onnx.checkpoint import Checkpoint
from helium_onnx.exporter.passes.lower_attention_group_query import LowerAttentionGroupQuery
from helium_onnx.exporter.passes.pack_query_key_value import PackQueryKeyValue
from helium_onnx.exporter.passes.rewriting import SOURCE
from helium_onnx.exporter.quantize import dequantize
from helium_onnx.exporter.quantize.round_to_nearest import quantize_rows
from helium_onnx.modeling import HeliumForCausalLM
from helium_onnx.recipe import MatrixSettings, Override, Quantization
from helium_onnx.runtimes.onnxruntime_session import OnnxRuntimeSession

EIGHT = Quantization("round-to-nearest", linear=MatrixSettings(8, 16))


def test_three_matrices_become_one(traced: ir.Model) -> None:
    before = graph_making.operators(traced)
    assert PackQueryKeyValue(EIGHT)(traced).modified
    after = graph_making.operators(traced)
    assert after["MatMul"] == before["MatMul"] - 2 * 3  # layers
    assert after["Split"] == 3
    packed = traced.graph.initializers["model.layers.2.self_attn.qkv_proj.weight"]
    names = [f"model.layers.2.self_attn.{kind}_proj.weight" for kind in "qkv"]
    assert packed.metadata_props[SOURCE].split("+") == names
    assert not any(name in traced.graph.initializers for name in names)


def test_fused_attention_takes_the_product_without_a_split(traced: ir.Model) -> None:
    PackQueryKeyValue(EIGHT)(traced)
    LowerAttentionGroupQuery()(traced)
    attention = [node for node in traced.graph if node.op_type == "GroupQueryAttention"]
    assert [node.inputs[0].producer().op_type for node in attention] == ["MatMul"] * 3  # type: ignore[union-attr]
    assert all(node.inputs[1] is None and node.inputs[2] is None for node in attention)
    assert graph_making.operators(traced)["Split"] == 0


def test_nothing_to_do(traced: ir.Model) -> None:
    PackQueryKeyValue(EIGHT)(traced)
    before = graph_making.operators(traced)
    assert not PackQueryKeyValue(EIGHT)(traced).modified
    assert graph_making.operators(traced) == before


def test_matrices_that_are_not_stored_alike_stay_apart(traced: ir.Model) -> None:
    assert not PackQueryKeyValue(Quantization())(traced).modified  # float32
    other = Override("model.layers.1.self_attn.v_proj", bits=4)
    assert PackQueryKeyValue(dataclasses.replace(EIGHT, overrides=(other,)))(traced).modified
    packed = [name for name in traced.graph.initializers if "qkv_proj" in name]
    assert packed == [f"model.layers.{i}.self_attn.qkv_proj.weight" for i in (0, 2)]


@pytest.mark.parametrize("model_type", ["helium", "llama"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_bundle_computes_what_the_model_does(model_type: str, kv_heads: int, tmp_path: Path) -> None:
    """8 bits and float32 arithmetic, against the PyTorch model with the dequantized weights."""
    source = tiny.write_checkpoint(tmp_path / "in", model_type=model_type, num_key_value_heads=kv_heads)
    recipe = tmp_path / "eight.toml"
    recipe.write_text(
        'summary = "test"\n[quantization]\nmethod = "round-to-nearest"\naccuracy_level = 1\n'
        "[quantization.linear]\nbits = 8\nblock_size = 16\n"
    )
    bundle = helium_onnx.export(source, tmp_path / "out", recipe=recipe)
    assert bundle.manifest.graphs["decode"].operators.get("Split", 0) == 0
    model = HeliumForCausalLM.from_checkpoint(Checkpoint.open(source))
    for name, parameter in model.named_parameters():
        if name.endswith("_proj.weight"):
            settings = MatrixSettings(8, 16, True)
            rows = quantize_rows(parameter.numpy().copy(), settings)
            parameter.data = torch.from_numpy(dequantize(rows, settings, parameter.shape[1]))
    ids = torch.arange(4, 68)[None] % 300
    with torch.inference_mode():
        expected = model(ids, torch.ones_like(ids), model.empty_past())[0][0].numpy()
    session = OnnxRuntimeSession(bundle)
    past = session.new_past(1)
    found = [session.run("prefill", ids[:, :48].numpy(), past)[0, 0]]
    found += [session.run("decode", ids[:, i : i + 1].numpy(), past)[0, 0] for i in range(48, 64)]
    error = np.abs(np.stack(found) - expected[47:]).max() / np.abs(expected).max()
    assert error < 1e-4
