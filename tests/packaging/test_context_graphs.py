"""What is asked of the graphs that a compiler wrote, over graphs that are written here instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from helium_onnx.bundle import Bundle
from helium_onnx.errors import ExportError, HeliumOnnxError, IntegrityError
from helium_onnx.packaging.context_graphs import COMPILED, ContextNode, check_context_graphs, context_nodes
from helium_onnx.runtimes.session import Phase

_TYPES = {"int64": TensorProto.INT64, "float16": TensorProto.FLOAT16}


def write(bundle: Bundle, folder: Path, binaries: dict[Phase, str | None]) -> dict[Phase, Path]:
    """Compiled graphs as they should be, for both phases of ``bundle``, and their ``binaries``."""
    paths: dict[Phase, Path] = {}
    for phase, binary in binaries.items():
        record = bundle.manifest.graphs[phase]
        inputs, outputs = (
            [helper.make_tensor_value_info(spec.name, _TYPES[spec.dtype], spec.dims) for spec in specs]
            for specs in (record.inputs, record.outputs)
        )
        attributes: dict[str, Any] = {"embed_mode": 0, "main_context": 1}
        if binary is not None:
            attributes["ep_cache_context"] = binary
            (folder / Path(binary).name).write_bytes(b"code")
        names = ([spec.name for spec in specs] for specs in (record.inputs, record.outputs))
        node = helper.make_node("EPContext", *names, name=phase, domain="com.microsoft", **attributes)
        model = helper.make_model(helper.make_graph([node], phase, inputs, outputs))
        paths[phase] = folder / f"{phase}.onnx"
        onnx.save(model, paths[phase])
    return paths


SHARED: dict[Phase, str | None] = {"prefill": "prefill_qnn.bin", "decode": "prefill_qnn.bin"}
OWN: dict[Phase, str | None] = {"prefill": "prefill_qnn.bin", "decode": "decode_qnn.bin"}


def test_what_is_read(qnn_bundle: Bundle, tmp_path: Path) -> None:
    paths = write(qnn_bundle, tmp_path, SHARED)
    assert context_nodes(paths["decode"]) == [ContextNode(COMPILED, "prefill_qnn.bin")]
    assert {node.binary for node in context_nodes(qnn_bundle.graph_path("decode"))} == {None}
    check_context_graphs(qnn_bundle, paths, share_weights=True)
    check_context_graphs(qnn_bundle, write(qnn_bundle, tmp_path, OWN), share_weights=False)


@pytest.mark.parametrize(
    ("binaries", "shared", "problem"),
    [
        (OWN, True, "did not share weights"),
        (SHARED, False, "shared weights unasked"),
        ({"prefill": "../prefill_qnn.bin", "decode": "prefill_qnn.bin"}, True, "did not compile all of prefill.onnx"),
        ({"prefill": "prefill_qnn.bin", "decode": None}, True, "wrote no binary for decode.onnx"),
    ],
)
def test_binaries_that_are_not_as_asked(
    binaries: dict[Phase, str | None], shared: bool, problem: str, qnn_bundle: Bundle, tmp_path: Path
) -> None:
    paths = write(qnn_bundle, tmp_path, binaries)
    with pytest.raises(ExportError, match=problem):
        check_context_graphs(qnn_bundle, paths, share_weights=shared)


def with_another_node(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Identity", ["logits"], ["same"]))


def with_another_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7


def without_an_output(model: onnx.ModelProto) -> None:
    del model.graph.output[-1]


@pytest.mark.parametrize(
    ("change", "kind", "problem"),
    [
        (with_another_node, ExportError, r"did not compile all of decode.onnx\n.*EPContext, Identity"),
        (with_another_input, IntegrityError, "takes or gives something else"),
        (without_an_output, IntegrityError, "takes or gives something else"),
    ],
)
def test_a_graph_that_is_another(
    change: Callable[[onnx.ModelProto], None],
    kind: type[HeliumOnnxError],
    problem: str,
    qnn_bundle: Bundle,
    tmp_path: Path,
) -> None:
    paths = write(qnn_bundle, tmp_path, SHARED)
    model = onnx.load(paths["decode"])
    change(model)
    onnx.save(model, paths["decode"])
    with pytest.raises(kind, match=problem):
        check_context_graphs(qnn_bundle, paths, share_weights=True)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xff\xff"])
def test_a_file_that_is_no_graph(content: bytes | None, qnn_bundle: Bundle, tmp_path: Path) -> None:
    paths = write(qnn_bundle, tmp_path, SHARED)
    paths["prefill"].unlink()
    if content is not None:
        paths["prefill"].write_bytes(content)
    with pytest.raises(ExportError, match=r"wrote no graph prefill.onnx|did not compile all of prefill.onnx"):
        check_context_graphs(qnn_bundle, paths, share_weights=True)


def test_an_empty_binary(qnn_bundle: Bundle, tmp_path: Path) -> None:
    paths = write(qnn_bundle, tmp_path, SHARED)
    (tmp_path / "prefill_qnn.bin").write_bytes(b"")
    with pytest.raises(ExportError, match="wrote no binary"):
        check_context_graphs(qnn_bundle, paths, share_weights=True)
