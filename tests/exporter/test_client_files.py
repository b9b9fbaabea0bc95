"""genai_config.json's pipeline; what else is in these files is held in test_bundle_contents.py and tests/interop."""

from __future__ import annotations

import graph_making

from helium_onnx import contract
from helium_onnx.exporter.client_files import genai_config
from helium_onnx.recipe import load_recipe


def test_the_pipeline_is_prefill_and_decode_with_the_contract_s_names() -> None:
    config = graph_making.config()
    (stages,) = genai_config(config, load_recipe("cpu-int4"))["model"]["decoder"]["pipeline"]
    assert [(name, stage["filename"]) for name, stage in stages.items()] == [
        ("prefill", "onnx/prefill.onnx"),
        ("decode", "onnx/decode.onnx"),
    ]
    for name, stage in stages.items():
        assert stage["run_on_prompt"] is (name == "prefill")
        assert stage["run_on_token_gen"] is (name == "decode")
        assert stage["inputs"] == [spec.name for spec in contract.tensors("model", "input", config)]
        assert stage["outputs"] == [spec.name for spec in contract.tensors("model", "output", config)]


def test_bundles_for_cuda_have_no_pipeline() -> None:
    """Their prefill and decode take no attention_mask, which is all that onnxruntime-genai gives."""
    model = genai_config(graph_making.config(), load_recipe("cuda-fp16"))["model"]
    assert model["type"] == "decoder"
    assert "pipeline" not in model["decoder"]
