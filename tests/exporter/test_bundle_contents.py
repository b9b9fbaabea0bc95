"""What is in the files of a bundle, for every recipe: versions, operators, alignment, and nothing of this machine."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny

import helium_onnx
from helium_onnx import contract
from helium_onnx.bundle import Bundle
from helium_onnx.config import HeliumConfig
from helium_onnx.contract import GRAPH_FILES, GRAPHS, NATIVE_GRAPHS, NATIVE_GRAPHS_OF, WEIGHTS_FILE
from helium_onnx.recipe import list_recipes

RECIPES = [recipe.name for recipe in list_recipes()]
#: Of standard operators alone: the checker knows no com.microsoft.
STANDARD = [recipe.name for recipe in list_recipes() if recipe.graph.operators == "standard"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("contents") / "checkpoint")


@pytest.fixture(scope="module", params=RECIPES)
def bundle(request: pytest.FixtureRequest, checkpoint: Path) -> Bundle:
    return helium_onnx.export(checkpoint, checkpoint.parent / request.param, recipe=request.param)


def files(bundle: Bundle) -> dict[contract.Graph | contract.NativeGraph, str]:
    """Its graphs' files: three, and those of our kernels where they know the recipe."""
    native = (
        () if bundle.manifest.recipe["name"] in ("cpu-fp32", "portable-fp32") else NATIVE_GRAPHS_OF[provider(bundle)]
    )
    return {name: contract.graph_file(name) for name in (*GRAPHS, *native)}


def provider(bundle: Bundle) -> str:
    return str(bundle.manifest.recipe["execution_provider"])


def graphs(bundle: Bundle) -> dict[contract.Graph | contract.NativeGraph, onnx.ModelProto]:
    return {name: onnx.load(bundle.path / file, load_external_data=False) for name, file in files(bundle).items()}


def recipe_is_standard(bundle: Bundle) -> bool:
    return bool(bundle.manifest.recipe["graph"]["operators"] == "standard")


def external(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def test_files(bundle: Bundle) -> None:
    names = {path.relative_to(bundle.path).as_posix() for path in bundle.path.rglob("*") if path.is_file()}
    assert names == {
        "helium.json", "config.json", "generation_config.json", "genai_config.json", "tokenizer.json",
        "tokenizer_config.json", WEIGHTS_FILE, *files(bundle).values(),
    }  # fmt: skip
    assert set(bundle.manifest.graphs) == set(files(bundle))


def test_versions(bundle: Bundle) -> None:
    for name, model in graphs(bundle).items():
        opset = 23 if name in ("prefill", "decode") and provider(bundle) == "qnn" else 18
        assert {o.domain: o.version for o in model.opset_import}[""] == opset
        assert model.ir_version <= {18: 10, 23: 11}[opset]
        assert (model.producer_name, model.producer_version) == ("helium-onnx", helium_onnx.__version__)


def test_operators(bundle: Bundle) -> None:
    for name, model in graphs(bundle).items():
        domains = {node.domain for node in model.graph.node}
        if name in NATIVE_GRAPHS:
            ours = {"helium_onnx.kernels"}
            assert domains == (ours if provider(bundle) == "cuda" else {"", "com.microsoft"} | ours)
        else:
            assert domains <= ({""} if recipe_is_standard(bundle) else {"", "com.microsoft"})
        assert {o.domain for o in model.opset_import} == {"", *domains}
        assert not model.functions
        counts = Counter(".".join(filter(None, (node.domain, node.op_type))) for node in model.graph.node)
        assert counts == bundle.manifest.graphs[name].operators
        if recipe_is_standard(bundle):
            assert not any("SimplifiedLayerNormalization" in op for op in counts)


@pytest.mark.parametrize("bundle", STANDARD, indirect=True)
def test_portable_graphs_pass_the_checker(bundle: Bundle) -> None:
    for file in GRAPH_FILES.values():
        onnx.checker.check_model(bundle.path / file, full_check=True)


def test_every_weight_is_where_the_manifest_says(bundle: Bundle) -> None:
    records = {(r.offset, r.nbytes) for r in bundle.manifest.tensors}
    read = set()
    for model in graphs(bundle).values():
        for tensor in model.graph.initializer:
            where = external(tensor)
            assert where["location"] == "model.onnx_data"
            offset, length = int(where["offset"]), int(where["length"])
            assert offset % 4096 == 0
            assert length == np.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            assert (offset, length) in records
            read.add((offset, length))
    assert read == records  # nothing is stored that no graph reads
    ends = [(r.offset, r.offset + r.nbytes) for r in sorted(bundle.manifest.tensors, key=lambda r: r.offset)]
    assert all(end <= start for (_, end), (start, _) in pairwise(ends))
    assert max(end for _, end in ends) == (bundle.path / WEIGHTS_FILE).stat().st_size


def test_graph_files_are_small_and_share_their_weights(bundle: Bundle) -> None:
    for model in graphs(bundle).values():
        assert model.ByteSize() < 150_000
        assert all(len(a.t.raw_data) < 1024 for node in model.graph.node for a in node.attribute)
        assert all(not tensor.raw_data for tensor in model.graph.initializer)


def test_inputs_and_outputs(bundle: Bundle) -> None:
    config = HeliumConfig.from_dict(bundle.model_config, source="bundle")
    for name, model in graphs(bundle).items():
        record = bundle.manifest.graphs[name]
        assert record.file == files(bundle)[name]
        for values, direction, recorded in (
            (model.graph.input, "input", record.inputs),
            (model.graph.output, "output", record.outputs),
        ):
            precision = bundle.manifest.recipe["precision"]
            kinds = {"compute": precision["compute"], "cache": precision["key_value_cache"]}
            # Longer than tiny's positions, which bound the window.
            window = contract.Window(256, 128) if provider(bundle) in ("qnn", "coreml") else None
            wanted = contract.tensors(
                name,
                direction,
                config,
                **kinds,
                execution_provider=provider(bundle),
                window=window,  # type: ignore[arg-type]
            )
            assert recorded == wanted
            found = [
                contract.TensorSpec(
                    value.name,
                    onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                    tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim),
                )
                for value in values
            ]
            assert tuple(found) == wanted


def test_nothing_of_this_machine(bundle: Bundle) -> None:
    for file in (*files(bundle).values(), "helium.json"):
        data = (bundle.path / file).read_bytes()
        for trace in (b"/work", b"/tmp", b"/root", b"/home", b"site-packages", b".py", b"torch.onnx", b"aten"):
            assert trace not in data, f"{file} holds {trace!r}"


def test_nodes_are_named_and_unique(bundle: Bundle) -> None:
    for model in graphs(bundle).values():
        names = [node.name for node in model.graph.node]
        assert all(names)
        assert len(set(names)) == len(names)


def test_two_exports_are_equal(bundle: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    again = helium_onnx.export(checkpoint, tmp_path / "again", recipe=bundle.manifest.recipe["name"])
    for path in sorted(bundle.path.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (again.path / path.relative_to(bundle.path)).read_bytes(), path.name
    assert again.digest == bundle.digest


def test_config_json_for_transformers_js(bundle: Bundle, checkpoint: Path) -> None:
    written = json.loads((bundle.path / "config.json").read_text())
    told = written.pop("transformers.js_config")
    assert told["use_external_data_format"] == {"model.onnx": 1}
    cache = bundle.manifest.recipe["precision"]["key_value_cache"]
    assert told.get("kv_cache_dtype", "float32") == cache
    assert written == json.loads((checkpoint / "config.json").read_text())


def test_tokenizer(bundle: Bundle, checkpoint: Path) -> None:
    assert (bundle.path / "tokenizer.json").read_bytes() == (checkpoint / "tokenizer.json").read_bytes()
    config = json.loads((bundle.path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_genai_config(bundle: Bundle) -> None:
    written = json.loads((bundle.path / "genai_config.json").read_text())
    model, decoder = written["model"], written["model"]["decoder"]
    assert model["type"] == "decoder"
    assert (model["vocab_size"], model["context_length"]) == (320, 256)
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (1, [2], 3)
    assert decoder["filename"] == "onnx/model.onnx"
    sizes = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_size", "hidden_size")
    assert [decoder[name] for name in sizes] == [3, 4, 2, 16, 64]
    assert written["search"]["past_present_share_buffer"] is not recipe_is_standard(bundle)
    # Its names are the graph's.
    graph = graphs(bundle)["model"].graph
    inputs, outputs = {v.name for v in graph.input}, {v.name for v in graph.output}
    told = {re.sub("%d", str(i), name) for name in decoder["inputs"].values() for i in range(3)}
    assert told == inputs
    assert {re.sub("%d", str(i), name) for name in decoder["outputs"].values() for i in range(3)} == outputs


def test_manifest(bundle: Bundle, checkpoint: Path) -> None:
    manifest = bundle.manifest
    assert manifest.task == "text-generation"
    assert {record.path for record in manifest.source} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    for record in manifest.source:
        assert (checkpoint / record.path).stat().st_size == record.size
    assert HeliumConfig.from_dict(manifest.model_config, source="bundle") == HeliumConfig.from_file(
        checkpoint / "config.json"
    )
    assert set(manifest.tools) >= {"torch", "onnx", "onnx-ir"}
