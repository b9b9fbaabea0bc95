"""Graphs of fixed shapes on Qualcomm's NPU, by the emulator in onnxruntime-qnn: taken whole, and equal to the CPU's.

Skipped where that package is not installed; with HELIUM_REQUIRE_QNN=1 that is a failure.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray
from static_bundles import small

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.checkpoint import Checkpoint
from helium_onnx.errors import ProviderError
from helium_onnx.modeling import HeliumForCausalLM
from helium_onnx.recipe import Method
from helium_onnx.runtimes.graph_loading import load_graph, session_options
from helium_onnx.runtimes.providers import QNN
from helium_onnx.runtimes.static_session import StaticSession

SAMPLE = Path(__file__).parents[2] / "samples" / "helium-docs-7m"
#: More than a chunk of tokens, so that a whole one and a padded one are read.
PROMPT = "To insert a table in a text document, choose Insert - Table and then enter the number of rows and columns."


@pytest.fixture(scope="module", autouse=True)
def emulator() -> None:
    if find_spec(str(QNN.plugin)) is None:
        missing = pytest.fail if os.environ.get("HELIUM_REQUIRE_QNN") == "1" else pytest.skip
        missing(f"no emulator of the NPU: pip install --no-deps {QNN.package}")


def assert_taken_whole(session: StaticSession) -> None:
    """By ONNX Runtime's own account, which load_graph has asked too."""
    assert QNN.config["session.disable_cpu_ep_fallback"] == "1"
    for graph in session._sessions.values():
        parts = graph.get_provider_graph_assignment_info()
        assert {part.ep_name for part in parts} == {"QNNExecutionProvider"}
        operators = {node.op_type for part in parts for node in part.get_nodes()}
        assert {"Attention", "RMSNormalization", "RotaryEmbedding"} <= operators


@pytest.fixture(scope="module", params=["qnn-fp16", "qnn-int4"])
def docs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """helium-docs-7m; in int4 by k-quant, in a second instead of GPTQ's minute."""
    method: Method = "none" if request.param == "qnn-fp16" else "k-quant"
    folder = tmp_path_factory.mktemp("qnn") / request.param
    return helium_onnx.export(SAMPLE, folder, recipe=small(request.param, 64, 16, method=method))


def test_the_samples_tokens_are_the_cpus(docs: Bundle) -> None:
    # Of 4 bits the emulator takes two seconds a token.
    count = 16 if docs.manifest.recipe["name"] == "qnn-fp16" else 6
    results = []
    for provider in ("cpu", "qnn"):
        with contextlib.closing(helium_onnx.load(docs.path, provider=provider)) as model:
            result = model.generate(PROMPT, max_new_tokens=count, temperature=0)
            results.append(result.text)
            if provider == "qnn":
                assert isinstance(model.session, StaticSession)
                assert_taken_whole(model.session)
    assert results[0] == results[1]
    assert len(results[0]) > count  # a few words, and no silence twice


def test_auto_is_the_npu(docs: Bundle) -> None:
    with contextlib.closing(helium_onnx.load(docs.path)) as model:
        assert isinstance(model.session, StaticSession)
        assert model.session.provider is QNN


def test_a_graph_that_is_not_taken_is_no_run_on_the_cpu(docs: Bundle) -> None:
    """model.onnx has free shapes: the provider takes nothing of it, and says nothing."""
    record = docs.manifest.graphs["model"]
    with pytest.raises(ProviderError, match=r"does not take all of model.onnx\n.*on CPUExecutionProvider"):
        load_graph(docs.graph_path("model"), session_options(QNN, 1), QNN, docs, record)


def wide(folder: Path, intermediate_size: int, *, model_type: str = "helium") -> Path:
    """A checkpoint of one layer as wide as the 2 B model's; a Llama has a quarter as many heads of keys and values."""
    return tiny.write_checkpoint(
        folder / "checkpoint",
        model_type=model_type,
        std=0.02,
        hidden_size=2560,
        intermediate_size=intermediate_size,
        num_hidden_layers=1,
        num_attention_heads=20,
        num_key_value_heads=20 if model_type == "helium" else 5,
        head_dim=128,
    )


#: Few, since the emulator takes seconds for each token of such a layer.
IDS = np.random.default_rng(0).integers(4, 320, (1, 4))


def logits(bundle: Bundle, provider: str) -> list[NDArray[np.float32]]:
    """Of the last two of IDS: prefill's and decode's."""
    with contextlib.closing(StaticSession(bundle, provider=provider)) as session:
        if provider == "qnn":
            assert_taken_whole(session)
        past = session.new_past(1)
        return [
            session.run("prefill", IDS[:, :-1], past)[0, -1].copy(),
            session.run("decode", IDS[:, -1:], past)[0, -1],
        ]


def assert_near(found: list[NDArray[np.float32]], expected: Sequence[NDArray[np.float32]]) -> None:
    for have, want in zip(found, expected, strict=True):
        assert np.abs(have - want).max() <= 1e-2 * np.abs(want).max()


@pytest.mark.parametrize(("model_type", "intermediate_size"), [("helium", 7040), ("llama", 704)])
def test_a_layer_of_full_width(model_type: str, intermediate_size: int, tmp_path: Path) -> None:
    """Compiled for the NPU, it gives PyTorch's logits within 1 % of the largest, in prefill and in decode."""
    checkpoint = wide(tmp_path, intermediate_size, model_type=model_type)
    bundle = helium_onnx.export(checkpoint, tmp_path / "bundle", recipe=small("qnn-fp16", 16, 4))
    model = HeliumForCausalLM.from_checkpoint(Checkpoint.open(checkpoint))
    ids = torch.from_numpy(IDS)
    with torch.inference_mode():
        expected = model(ids, torch.ones_like(ids), model.empty_past())[0].numpy()
    assert_near(logits(bundle, "qnn"), list(expected[0, -2:]))


def test_a_layer_of_full_width_in_4_bits(tmp_path: Path) -> None:
    """Within 1 % of the same graph's on the CPU: rounding the weights moves the logits further than that.

    The MLP is a tenth as wide: of the whole one the emulator takes two minutes.
    """
    recipe = small("qnn-int4", 16, 4, method="round-to-nearest")
    bundle = helium_onnx.export(wide(tmp_path, 704), tmp_path / "bundle", recipe=recipe)
    assert_near(logits(bundle, "qnn"), logits(bundle, "cpu"))
