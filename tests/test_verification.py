"""verify: each kind of damage ends the list at its own check, in words that help."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import bundles
import numpy as np
import onnx
import pytest
import tiny

import helium_onnx
from helium_onnx import kernels
from helium_onnx.bundle import Bundle, sha256
from helium_onnx.contract import GRAPH_FILES, NATIVE_GRAPH_FILES, NATIVE_GRAPHS, WEIGHTS_FILE, TensorSpec
from helium_onnx.manifest import MANIFEST_FILE, FileRecord, GraphRecord, Manifest
from helium_onnx.progress import ProgressEvent, silent
from helium_onnx.recipe import Precision, list_recipes, load_recipe
from helium_onnx.verification import CHECKS, Check, verify_bundle

NAMES = [name for name, _ in CHECKS]
NATIVE_FILES = [NATIVE_GRAPH_FILES[graph] for graph in NATIVE_GRAPHS]
ALL_GRAPH_FILES = (*GRAPH_FILES.values(), *NATIVE_FILES)


def no_graph(kind: str) -> bytes:
    """Content that is no graph of ours: no bytes, no nodes, or an input handed through (which ONNX Runtime loads)."""
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    values = [x] if kind == "an input handed through" else []
    graph = onnx.helper.make_graph([], "empty", values, values)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    return b"" if kind == "no bytes" else model.SerializeToString()


@pytest.fixture(scope="module", params=[recipe.name for recipe in list_recipes()])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verification")
    return helium_onnx.export(tiny.write_checkpoint(folder / "c"), folder / "b", recipe=request.param).path


@pytest.fixture(scope="module")
def int4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verification")
    return helium_onnx.export(tiny.write_checkpoint(folder / "c"), folder / "b", recipe="cpu-int4").path


@pytest.fixture
def bundle(int4: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(int4, tmp_path / "bundle")


def rewrite(path: Path, change: Callable[[Manifest], Manifest] = lambda manifest: manifest) -> None:
    """Change the manifest, and make its sizes and digests those of the files as they are now."""
    text = (path / MANIFEST_FILE).read_text(encoding="utf-8")
    manifest = change(Manifest.from_json(text, source="test"))
    files = tuple(
        FileRecord(file.path, (path / file.path).stat().st_size, sha256(path / file.path))
        for file in manifest.files
        if (path / file.path).exists()
    )
    (path / MANIFEST_FILE).write_text(dataclasses.replace(manifest, files=files).to_json(), encoding="utf-8")


def failed(path: Path, name: str) -> str:
    """The detail of the last check, which must be ``name`` and the only one that failed."""
    checks = verify_bundle(path, progress=silent)
    assert [(check.name, check.ok) for check in checks] == [
        (one, one != name) for one in NAMES[: NAMES.index(name) + 1]
    ]
    assert not any(word in checks[-1].detail for word in ("Traceback", "Error:"))
    return checks[-1].detail


def test_a_sound_bundle(sound: Path) -> None:
    checks = helium_onnx.verify(sound)
    assert [check.name for check in checks] == NAMES
    assert all(check.ok for check in checks), checks[-1].detail


def test_the_sample(sample_bundle: Path, sample_bundle_fp32: Path) -> None:
    for path in (sample_bundle, sample_bundle_fp32):
        checks = verify_bundle(path, progress=silent)
        assert all(check.ok for check in checks), checks[-1].detail


def test_nothing_is_changed(int4: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in [int4, *int4.rglob("*")]}
    verify_bundle(int4, progress=silent)
    assert before == {path: path.stat().st_mtime_ns for path in [int4, *int4.rglob("*")]}


def test_progress_counts_all_bytes(int4: Path) -> None:
    events: list[ProgressEvent] = []
    verify_bundle(int4, progress=events.append)
    hashed = [event for event in events if event.total]
    assert hashed[-1].done == hashed[-1].total == Bundle.open(int4).total_bytes
    said = [event.item for event in events if not event.total and event.stage == "verify"]
    assert said == list(ALL_GRAPH_FILES)


def test_no_bundle(tmp_path: Path) -> None:
    assert "There is no folder" in failed(tmp_path / "nothing", "manifest")


@pytest.mark.parametrize("file", [WEIGHTS_FILE, *ALL_GRAPH_FILES, "tokenizer.json", "config.json"])
def test_a_flipped_bit(file: str, bundle: Path) -> None:
    bundles.flip_bit(bundle / file)
    assert f"{file} has another content" in failed(bundle, "files")


def test_a_flipped_bit_in_the_manifest(bundle: Path) -> None:
    text = (bundle / MANIFEST_FILE).read_text(encoding="utf-8")
    (bundle / MANIFEST_FILE).write_text(text.replace("helium", "heliun", 1), encoding="utf-8")
    assert "was changed" in failed(bundle, "manifest")


@pytest.mark.parametrize("file", [WEIGHTS_FILE, GRAPH_FILES["decode"], "tokenizer.json"])
def test_a_missing_file(file: str, bundle: Path) -> None:
    (bundle / file).unlink()
    detail = failed(bundle, "files")
    assert f"{file} is missing" in detail
    assert "remedy:" in detail


def test_a_truncated_file(bundle: Path) -> None:
    with (bundle / WEIGHTS_FILE).open("r+b") as file:
        file.truncate(1000)
    assert "has 1000 bytes" in failed(bundle, "files")


def test_a_graph_that_the_manifest_lacks(bundle: Path) -> None:
    def drop(manifest: Manifest) -> Manifest:
        return dataclasses.replace(manifest, graphs={k: g for k, g in manifest.graphs.items() if k != "model"})

    rewrite(bundle, drop)
    detail = failed(bundle, "manifest")
    assert "expected: prefill, decode, model" in detail


def test_a_tokenizer_of_another_size(bundle: Path) -> None:
    tiny.write_json(bundle / "tokenizer.json", tiny.tokenizer(321))
    rewrite(bundle)
    detail = failed(bundle, "tokenizer")
    assert "321" in detail
    assert "320" in detail


@pytest.mark.parametrize("graph", ["prefill", "decode", "model"])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("no bytes", "No graph was found in the protobuf"),
        ("no nodes", "cannot load"),
        ("an input handed through", "expected: input_ids"),
    ],
)
def test_an_empty_graph(kind: str, said: str, graph: str, bundle: Path) -> None:
    (bundle / "onnx" / f"{graph}.onnx").write_bytes(no_graph(kind))
    rewrite(bundle)
    assert said in failed(bundle, graph)


def test_an_empty_graph_that_the_manifest_agrees_with(bundle: Path) -> None:
    (bundle / GRAPH_FILES["decode"]).write_bytes(no_graph("no nodes"))

    def empty(manifest: Manifest) -> Manifest:
        return dataclasses.replace(
            manifest, graphs={**manifest.graphs, "decode": GraphRecord(GRAPH_FILES["decode"], (), (), {})}
        )

    rewrite(bundle, empty)
    assert "not those of the contract" in failed(bundle, "decode")


def test_a_file_that_is_no_graph(bundle: Path) -> None:
    (bundle / GRAPH_FILES["model"]).write_bytes(b"not a graph at all")
    rewrite(bundle)
    assert "cannot load model.onnx" in failed(bundle, "model")


def test_another_output_than_the_manifests(bundle: Path) -> None:
    path = bundle / GRAPH_FILES["decode"]
    model = onnx.load(path, load_external_data=False)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "n"
    path.write_bytes(model.SerializeToString())
    rewrite(bundle)
    detail = failed(bundle, "decode")
    assert "found:    logits [batch_size, n, 320] float32" in detail
    assert "expected: logits [batch_size, sequence_length, 320] float32" in detail


@pytest.mark.parametrize("change", ["name", "dtype", "dims"])
def test_a_contract_of_another_form(change: str, bundle: Path) -> None:
    def spoil(manifest: Manifest) -> Manifest:
        record = manifest.graphs["prefill"]
        values = {"name": "mask", "dtype": "int32", "dims": ("batch", "total_sequence_length")}
        first, second, *rest = record.inputs
        assert isinstance(second, TensorSpec)
        second = dataclasses.replace(second, **{change: values[change]})  # type: ignore[arg-type]
        inputs = (first, second, *rest)
        return dataclasses.replace(
            manifest, graphs={**manifest.graphs, "prefill": dataclasses.replace(record, inputs=inputs)}
        )

    rewrite(bundle, spoil)
    assert "expected: attention_mask [batch_size, total_sequence_length] int64" in failed(bundle, "prefill")


def test_weights_that_are_no_numbers(bundle: Path) -> None:
    record = next(t for t in Bundle.open(bundle).manifest.tensors if t.name == "model.norm.weight")
    with (bundle / WEIGHTS_FILE).open("r+b") as file:
        file.seek(record.offset)
        file.write(np.full(64, np.nan, np.float32).tobytes())
    rewrite(bundle)
    assert "are NaN or infinite" in failed(bundle, "prefill")


@pytest.mark.parametrize("graph", ["prefill", "decode"])
def test_graphs_that_disagree(graph: str, bundle: Path) -> None:
    """A flipped RoPE in one of the graphs: loads, runs, finite, wrong."""
    assert bundles.flip_attribute(bundle / "onnx" / f"{graph}.onnx", "rotary_interleaved")
    rewrite(bundle)
    assert f"{graph}.onnx and model.onnx give different logits" in failed(bundle, "agreement")


# Native graphs


def without_native(*names: str) -> Callable[[Manifest], Manifest]:
    return lambda manifest: dataclasses.replace(
        manifest, graphs={name: record for name, record in manifest.graphs.items() if name not in names}
    )


def detail_of(path: Path, name: str) -> str:
    """What a check says that all is well with."""
    checks = {check.name: check for check in verify_bundle(path, progress=silent)}
    assert checks[name].ok, checks[name].detail
    return checks[name].detail


@pytest.mark.usefixtures("native_kernels")
def test_native_graphs_are_run(bundle: Path) -> None:
    said = detail_of(bundle, "native")
    assert "differences from model.onnx" in said
    assert "native_prefill" in said and "native_decode" in said


def test_native_graphs_on_a_machine_without_kernels(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "library", lambda: None)
    assert "not run, since this machine has no native kernels" in detail_of(bundle, "native")


def test_a_bundle_without_native_graphs(bundle: Path, sample_bundle_fp32: Path) -> None:
    """A recipe that has none, and one that was written before there were any."""
    assert "none in this bundle" in detail_of(sample_bundle_fp32, "native")
    rewrite(bundle, without_native("native_prefill", "native_decode"))
    assert "none in this bundle" in detail_of(bundle, "native")


@pytest.mark.parametrize("name", ["prefill", "decode"])
def test_graphs_of_fixed_shapes_that_disagree(name: str, tmp_path: Path) -> None:
    path = helium_onnx.export(tiny.write_checkpoint(tmp_path / "c"), tmp_path / "b", recipe="qnn-fp16").path
    assert all(check.ok for check in verify_bundle(path, progress=silent))
    assert bundles.flip_attribute(path / f"onnx/{name}.onnx", "interleaved") == 6
    rewrite(path)
    assert f"{name}.onnx and model.onnx give different logits" in failed(path, "agreement")


@pytest.mark.parametrize("name", ["native_prefill", "native_decode"])
def test_one_native_graph_without_the_other(name: str, bundle: Path) -> None:
    rewrite(bundle, without_native(name))
    assert "native_prefill, native_decode, or none of these" in failed(bundle, "manifest")


@pytest.mark.usefixtures("native_kernels")
@pytest.mark.parametrize("name", ["prefill", "decode"])
def test_native_graphs_that_disagree(name: str, bundle: Path) -> None:
    """A flipped RoPE again."""
    assert bundles.flip_attribute(bundle / "onnx" / f"{name}.native.onnx", "interleaved")
    rewrite(bundle)
    assert f"{name}.native.onnx and model.onnx give different logits" in failed(bundle, "native")


@pytest.mark.usefixtures("native_kernels")
@pytest.mark.parametrize("kind", ["no bytes", "no nodes", "an input handed through"])
@pytest.mark.parametrize("file", NATIVE_FILES)
def test_an_empty_native_graph(file: str, kind: str, bundle: Path) -> None:
    (bundle / file).write_bytes(no_graph(kind))
    rewrite(bundle)
    detail = failed(bundle, "native")
    assert Path(file).name in detail and "remedy:" in detail


def test_a_native_contract_of_another_form(bundle: Path) -> None:
    def spoil(manifest: Manifest) -> Manifest:
        record = manifest.graphs["native_decode"]
        inputs = tuple(
            dataclasses.replace(spec, dtype="float32") if "past_k" in spec.name else spec for spec in record.inputs
        )
        return dataclasses.replace(
            manifest, graphs={**manifest.graphs, "native_decode": dataclasses.replace(record, inputs=inputs)}
        )

    rewrite(bundle, spoil)
    assert "expected: past_key_values.0.key [batch_size, 2, context_length, 16] float16" in failed(bundle, "native")


@pytest.mark.usefixtures("native_kernels")
def test_a_native_graph_whose_weights_have_another_size(bundle: Path) -> None:
    """The operator's own words, where the attributes lie about the tensors."""
    path = bundle / NATIVE_GRAPH_FILES["native_decode"]
    model = onnx.load(path, load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "QuantizedLinear")
    next(a for a in node.attribute if a.name == "rows").ints[0] += 16
    path.write_bytes(model.SerializeToString())
    rewrite(bundle)
    detail = failed(bundle, "native")
    assert "cannot run decode.native.onnx" in detail and "weights have another type or size" in detail


# Bundles for CUDA, on the CPU


@pytest.fixture(scope="module")
def exported_for_cuda(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("verification")
    checkpoint = tiny.write_checkpoint(folder / "c")
    return functools.cache(lambda recipe: helium_onnx.export(checkpoint, folder / recipe, recipe=recipe).path)


@pytest.fixture
def for_cuda(exported_for_cuda: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Copies to damage."""
    return lambda recipe: shutil.copytree(exported_for_cuda(recipe), tmp_path / recipe)


def test_float16_runs_on_the_cpu(for_cuda: Callable[[str], Path]) -> None:
    path = for_cuda("cuda-fp16")
    assert "its logits [1, 1, 320] are finite" in detail_of(path, "prefill")
    assert "differences from model.onnx" in detail_of(path, "agreement")
    assert "not run, since its kernels are those of a GPU" in detail_of(path, "native")


def test_bfloat16_is_held_against_the_contract(for_cuda: Callable[[str], Path]) -> None:
    """And is said not to be run: no check passes for another reason than it seems."""
    path = for_cuda("cuda-bf16")
    for graph in ("prefill", "decode", "model"):
        said = detail_of(path, graph)
        assert "as the contract says; not run, since a CPU has no kernels for bfloat16" in said
    assert detail_of(path, "agreement").startswith("not compared")


@pytest.mark.parametrize("compute", ["float16", "bfloat16"])
def test_an_int8_cache_for_cuda(compute: Literal["float16", "bfloat16"], tmp_path: Path) -> None:
    base = load_recipe("cuda-fp16" if compute == "float16" else "cuda-bf16")
    recipe = dataclasses.replace(base, name="kv8", precision=Precision(compute, "int8"))
    path = helium_onnx.export(tiny.write_checkpoint(tmp_path / "c"), tmp_path / "b", recipe=recipe).path
    assert all(check.ok for check in helium_onnx.verify(path))
    ran = "finite" in detail_of(path, "prefill") and "differences from model.onnx" in detail_of(path, "agreement")
    assert ran is (compute == "float16")


@pytest.mark.parametrize("graph", ["prefill", "decode"])
def test_cuda_graphs_that_disagree(graph: str, for_cuda: Callable[[str], Path]) -> None:
    path = for_cuda("cuda-fp16")
    assert bundles.flip_attribute(path / "onnx" / f"{graph}.onnx", "rotary_interleaved")
    rewrite(path)
    assert f"{graph}.onnx and model.onnx give different logits" in failed(path, "agreement")


def test_a_cuda_graph_that_chooses_another_token(for_cuda: Callable[[str], Path]) -> None:
    path = for_cuda("cuda-fp16")
    model = onnx.load(path / GRAPH_FILES["decode"], load_external_data=False)
    next(node for node in model.graph.node if node.op_type == "ArgMax").op_type = "ArgMin"
    (path / GRAPH_FILES["decode"]).write_bytes(model.SerializeToString())
    rewrite(path)
    assert "decode.onnx chooses another token than its logits" in failed(path, "decode")


@pytest.mark.parametrize(
    ("recipe", "graph", "check"),
    [
        ("cuda-bf16", "prefill", "prefill"),
        ("cuda-bf16", "model", "model"),
        ("cuda-fp16", "decode.native", "native"),
    ],
)
def test_a_graph_that_is_not_run_is_read(recipe: str, graph: str, check: str, for_cuda: Callable[[str], Path]) -> None:
    bundle = for_cuda(recipe)
    path = bundle / "onnx" / f"{graph}.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    path.write_bytes(model.SerializeToString())
    rewrite(bundle)
    detail = failed(bundle, check)
    assert f"the inputs of {graph}.onnx are not those of the manifest" in detail
    assert "found:    input_ids [n, " in detail
    path.write_bytes(b"")
    rewrite(bundle)
    assert f"{graph}.onnx holds no graph" in failed(bundle, check)


def test_a_cuda_contract_of_another_form(for_cuda: Callable[[str], Path]) -> None:
    """A bundle whose recipe says cuda, and whose graphs are the CPU's."""
    path = for_cuda("cuda-fp16")

    def spoil(manifest: Manifest) -> Manifest:
        record = manifest.graphs["decode"]
        inputs = tuple(spec for spec in record.inputs if spec.name != "seqlens_k")
        return dataclasses.replace(
            manifest, graphs={**manifest.graphs, "decode": dataclasses.replace(record, inputs=inputs)}
        )

    rewrite(path, spoil)
    assert "expected: seqlens_k [batch_size] int32" in failed(path, "decode")


def test_a_cuda_bundle_without_its_native_graph(for_cuda: Callable[[str], Path]) -> None:
    """As of a model whose heads no kernel of ours takes."""
    path = for_cuda("cuda-fp16")
    rewrite(path, without_native("native_decode"))
    assert "none in this bundle" in detail_of(path, "native")


def test_a_check_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Check("a", True, "b").ok = False  # type: ignore[misc]
