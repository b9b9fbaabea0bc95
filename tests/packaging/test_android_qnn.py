"""Packages for Snapdragon's NPU: compiled for it, run on its emulator, and what the phone gets.

Skipped where onnxruntime-qnn is not installed; with HELIUM_REQUIRE_QNN=1 that is a failure.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from packages import PROMPT, need_compiler

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.errors import ProviderError
from helium_onnx.manifest import Manifest
from helium_onnx.packaging.android_qnn import SOCS, Soc
from helium_onnx.packaging.context_graphs import COMPILED, context_nodes
from helium_onnx.runtimes.packaged import package_options, session_entries
from helium_onnx.runtimes.providers import QNN
from helium_onnx.runtimes.static_session import StaticSession

Made = Callable[[str, bool], Bundle]


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    need_compiler()


@pytest.fixture(scope="module")
def made(qnn_bundle: Bundle, qnn_int4_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Packages of both bundles for Snapdragon 8 Gen 3, shared or not, each made once. Tests only read them."""
    folder = tmp_path_factory.mktemp("packages")
    bundles = {"qnn-fp16": qnn_bundle, "qnn-int4": qnn_int4_bundle}

    def make(recipe: str, shared: bool) -> Bundle:
        dest = folder / f"{recipe}-{shared}"
        if not dest.exists():
            helium_onnx.package(bundles[recipe].path, dest, target="android-qnn", soc="75/57", share_weights=shared)
        return Bundle.open(dest)

    return make


def binaries(package: Bundle) -> dict[str, int]:
    return {file.path: file.size for file in package.manifest.files if file.path.endswith(".bin")}


@pytest.mark.parametrize(("recipe", "count"), [("qnn-fp16", 16), ("qnn-int4", 5)])
def test_the_packages_tokens_are_the_bundles(
    recipe: str, count: int, made: Made, qnn_bundle: Bundle, qnn_int4_bundle: Bundle
) -> None:
    """Both on the emulator (in 4 bits it takes two seconds a token), all of the package on the NPU's provider."""
    bundle = {"qnn-fp16": qnn_bundle, "qnn-int4": qnn_int4_bundle}[recipe]
    tokens = []
    for one in (bundle, made(recipe, False)):
        with contextlib.closing(helium_onnx.load(one.path)) as model:
            session = model.session
            assert isinstance(session, StaticSession)
            assert session.provider is QNN
            assert QNN.config["session.disable_cpu_ep_fallback"] == "1"
            (generation,) = model.generate(PROMPT, max_new_tokens=count, temperature=0)
            tokens.append(generation.token_ids)
            operators = []
            for graph in session._sessions.values():
                parts = graph.get_provider_graph_assignment_info()
                assert {part.ep_name for part in parts} == {"QNNExecutionProvider"}
                operators.append([node.op_type for part in parts for node in part.get_nodes()])
    assert operators == [["EPContext"], ["EPContext"]]  # of the package: nothing else is left in its graphs
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) == count
    assert len(set(tokens[0])) > 2  # no silence twice


@pytest.mark.parametrize("recipe", ["qnn-fp16", "qnn-int4"])
def test_prefill_and_decode_share_one_copy_of_the_weights(recipe: str, made: Made) -> None:
    shared, unshared = made(recipe, True), made(recipe, False)
    for package, count in ((shared, 1), (unshared, 2)):
        graphs = [context_nodes(package.graph_path(phase)) for phase in ("prefill", "decode")]
        assert [node.operator for nodes in graphs for node in nodes] == [COMPILED] * 2
        assert {f"onnx/{node.binary}" for nodes in graphs for node in nodes} == set(binaries(package))
        assert len(binaries(package)) == count
    # Beside one copy of the weights stands the code of two graphs, some 2 % of this small model.
    weights = next(file.size for file in unshared.manifest.files if file.path == "onnx/decode_qnn.bin")
    assert weights < sum(binaries(shared).values()) < 1.05 * weights
    assert sum(binaries(shared).values()) < 0.55 * sum(binaries(unshared).values())


def test_what_is_in_the_folder(made: Made, qnn_bundle: Bundle) -> None:
    package = made("qnn-fp16", True)
    assert sorted(file.path for file in package.manifest.files) == [
        "config.json", "generation_config.json", "onnx/decode.onnx", "onnx/prefill.onnx", "onnx/prefill_qnn.bin",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    package.check_digests()
    manifest = package.manifest
    assert manifest.package == {
        "target": "android-qnn",
        "bundle": qnn_bundle.digest,
        "execution_provider": "qnn",
        "soc": "75/57",
        "chip": "SM8650",
        "device": "Snapdragon 8 Gen 3",
        "provider_options": {"htp_arch": "75", "soc_model": "57"},
        "shared_weights": True,
    }
    assert manifest.tools["onnxruntime-qnn"] == "2.7.0"
    assert (manifest.recipe, manifest.model_config) == (qnn_bundle.manifest.recipe, qnn_bundle.manifest.model_config)
    assert manifest.tensors == ()
    assert set(manifest.graphs) == {"prefill", "decode"}
    for phase, record in manifest.graphs.items():
        before = qnn_bundle.manifest.graphs[phase]
        assert (record.inputs, record.outputs, record.operators) == (before.inputs, before.outputs, {COMPILED: 1})


def test_equal_inputs_give_equal_bytes(made: Made, qnn_bundle: Bundle, tmp_path: Path) -> None:
    again = helium_onnx.package(qnn_bundle.path, tmp_path / "again", target="android-qnn", soc="SM8650")
    assert again.digest == made("qnn-fp16", True).digest


@pytest.mark.parametrize("soc", SOCS, ids=lambda soc: soc.name)
def test_each_chip_has_code_of_its_own(soc: Soc, qnn_int4_bundle: Bundle, tmp_path: Path) -> None:
    seen = set()
    for one in {soc, SOCS[1]}:
        package = helium_onnx.package(qnn_int4_bundle.path, tmp_path / one.chip, target="android-qnn", soc=one.name)
        assert package.manifest.package["device"] == one.device
        seen.add(next(file.sha256 for file in package.manifest.files if file.path.endswith(".bin")))
    assert len(seen) == len({soc, SOCS[1]})


def test_shared_weights_are_not_given_to_the_emulator(made: Made) -> None:
    """It would end this process by a segmentation fault."""
    package = made("qnn-fp16", True)
    with pytest.raises(ProviderError, match="prefill and decode share their weights") as caught:
        helium_onnx.load(package.path)
    assert "--unshared" in str(caught.value.remedy)
    assert session_entries(package) == {"ep.share_ep_contexts": "1"}
    info = helium_onnx.inspect(package.path, provider="qnn")
    assert set(info["skipped"]) == {"prefill", "decode"}


def test_a_package_is_for_its_device_alone(made: Made) -> None:
    package = made("qnn-fp16", False)
    assert package_options(package) == {"htp_arch": "75", "soc_model": "57"}
    assert session_entries(package) == {}
    with pytest.raises(ProviderError, match=r"provider cpu\n.*compiled for qnn, Snapdragon 8 Gen 3"):
        helium_onnx.load(package.path, provider="cpu")


@pytest.mark.parametrize("shared", [True, False])
def test_a_package_is_a_bundle_to_every_command_that_reads_one(shared: bool, made: Made) -> None:
    package = made("qnn-int4", shared)
    assert all(check.ok for check in helium_onnx.verify(package.path))
    info = helium_onnx.inspect(package.path)
    assert (info["weights"], info["package"]) == (None, package.manifest.package)
    # Its manifest is read back, and one without the key is that of a bundle that was not packaged.
    text = (package.path / "helium.json").read_text()
    assert Manifest.from_json(text, source="helium.json") == package.manifest
    assert json.loads(text)["package"]["shared_weights"] is shared
