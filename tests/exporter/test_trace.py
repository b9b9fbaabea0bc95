"""The trace: no weight in it, little memory, and layers repeated as if they had been traced."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import graph_making
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import reference
import tiny

from helium_onnx import contract
from helium_onnx.checkpoint import Checkpoint
from helium_onnx.config import PREVIEW_2B, HeliumConfig
from helium_onnx.exporter.graphs import build_graphs, save_graph
from helium_onnx.exporter.quantize import DataFree
from helium_onnx.exporter.trace import OPSET, _export, placeholder, trace
from helium_onnx.exporter.weights import WeightPlan
from helium_onnx.recipe import load_recipe


def test_the_graph_is_the_contracts(traced: ir.Model) -> None:
    config = graph_making.config()
    for values, direction in ((traced.graph.inputs, "input"), (traced.graph.outputs, "output")):
        wanted = {spec.name: spec for spec in contract.tensors("model", direction, config)}  # type: ignore[arg-type]
        assert {value.name for value in values} == set(wanted)
        for value in values:
            dims = [d if isinstance(d, int) else d.value for d in value.shape or ()]
            assert [d for d in dims if isinstance(d, int)] == [
                d for d in wanted[str(value.name)].dims if isinstance(d, int)
            ]
    assert traced.opset_imports[""] == OPSET == 18


def test_initializers_are_the_checkpoints_tensors_without_data(traced: ir.Model) -> None:
    from helium_onnx.checkpoint import expected_tensors

    config = graph_making.config()
    table = (config.max_position_embeddings, config.head_dim // 2)
    expected = {**expected_tensors(config), "cos": table, "sin": table}
    found = {name: tuple(value.shape or ()) for name, value in traced.graph.initializers.items() if value.uses()}
    assert found == expected
    for value in traced.graph.initializers.values():
        assert isinstance(value.const_value, ir.ExternalTensor)
        assert value.const_value.length == 0


def test_the_embedding_names_a_tied_pair() -> None:
    model = trace(graph_making.config(tie_word_embeddings=True, num_hidden_layers=1))
    assert "lm_head.weight" not in model.graph.initializers
    readers = [user.op_type for user, _ in model.graph.initializers["model.embed_tokens.weight"].uses()]
    assert sorted(readers) == ["Gather", "Transpose"]


@pytest.mark.slow
def test_memory_of_a_2b_trace() -> None:
    """8.7 GB of weights; under 1 GB at the peak, most of it the libraries."""
    program = (
        "import json, re, sys\n"
        "from pathlib import Path\n"
        "from helium_onnx.config import HeliumConfig\n"
        "from helium_onnx.exporter.trace import trace\n"
        "config = HeliumConfig.from_dict(json.loads(sys.argv[1]), source='argv')\n"
        "model = trace(config)\n"
        "assert config.num_parameters > 2_000_000_000\n"
        "assert sum(node.op_type == 'CausalAttention' for node in model.graph) == 24\n"
        # Not ru_maxrss, in which the process that forked this one counts too.
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(dict(PREVIEW_2B))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    kibibytes = int(done.stdout.splitlines()[-1])
    assert kibibytes < 1_000_000


def test_the_terminal_is_left_alone(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    trace(graph_making.config(num_hidden_layers=1))
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []


def test_repeated_layers_compute_what_traced_ones_do(tmp_path: Path) -> None:
    """Three layers: two traced and one repeated, against three traced, bit for bit."""
    checkpoint = Checkpoint.open(tiny.write_checkpoint(tmp_path / "checkpoint"))
    config, recipe = checkpoint.config, load_recipe("cpu-fp32")
    assert config.num_hidden_layers == 3

    def direct(config: HeliumConfig) -> ir.Model:
        model = _export(dataclasses.replace(config, num_hidden_layers=3))
        for name, value in model.graph.initializers.items():
            shape = tuple(int(d) for d in value.shape or ())
            value.const_value = placeholder(name, value.dtype or ir.DataType.FLOAT, shape)
        return model

    ids = reference.random_ids(1, 32)
    results = []
    ways: dict[str, Callable[[HeliumConfig], ir.Model]] = {"repeated": trace, "direct": direct}
    for name, way in ways.items():
        (tmp_path / name / "onnx").mkdir(parents=True)
        plan = WeightPlan()
        for graph, model in build_graphs(way(config), plan, config, recipe).items():
            save_graph(model, tmp_path / name / contract.GRAPH_FILES[graph])
        plan.write(tmp_path / name / contract.WEIGHTS_FILE, checkpoint, DataFree(checkpoint, "none"))
        logits, present = reference.Graphs(tmp_path / name, config, ["decode"]).run("decode", ids)
        results.append([logits, *present])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_traces_are_equal(traced: ir.Model) -> None:
    again = trace(graph_making.config())
    texts = [onnx.printer.to_text(ir.serde.serialize_model(model).graph) for model in (traced, again)]
    assert texts[0] == texts[1]
