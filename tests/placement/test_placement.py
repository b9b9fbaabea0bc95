"""Who takes which node: from ONNX Runtime's answer (a real one on the CPU, made-up ones), and from tables."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from placement_record import share
from rich.console import Console

import helium_onnx
from helium_onnx import placement
from helium_onnx.bundle import Bundle
from helium_onnx.errors import BundleError, UsageError
from helium_onnx.placement import assigned, by_assignment, by_table, text
from helium_onnx.placement.assigned import AssignedNode, Assignment, assign
from helium_onnx.placement.graph import Node, nodes
from helium_onnx.placement.partitions import partitions
from helium_onnx.placement.tables import TABLES, Operator, OperatorTable
from helium_onnx.runtimes.providers import CPU, PROVIDERS

GPU = "SomeExecutionProvider"


def node(name: str, operator: str, *inputs: str, dtype: str = "float32", fixed: bool = True, **attributes: int) -> Node:
    return Node(name, operator, "", inputs, (name,), dtype, fixed, attributes)


def table(**changes: Any) -> OperatorTable:
    operators = (
        Operator("MatMul", "", ("float32", "float16")),
        Operator("Add", "", ("float16",)),
        Operator("Packed", "", ("float32",), {"bits": (4, 8)}),
    )
    return OperatorTable(**{
        "provider": "some", "onnxruntime_name": GPU, "source": "a test", "operators": operators, "recipes": ("some",),
        **changes,
    })  # fmt: skip


class TestTable:
    @pytest.mark.parametrize(
        ("one", "fixed_shapes", "refusal"),
        [
            (node("a", "MatMul"), False, None),
            (node("a", "MatMul", fixed=False), False, None),
            (node("a", "MatMul", fixed=False), True, "its shapes are known only at the call"),
            (node("a", "MatMul", dtype="int8"), False, "no kernel for MatMul in int8"),
            (node("a", "Sub"), False, "no kernel for Sub"),
            (node("a", "Add"), False, "no kernel for Add in float32"),
            (node("a", "Packed", bits=4), False, None),
            (node("a", "Packed"), False, None),
            (node("a", "Packed", bits=2), False, "Packed takes bits 4, 8 alone, not 2"),
        ],
    )
    def test_refusal(self, one: Node, fixed_shapes: bool, refusal: str | None) -> None:
        assert table(fixed_shapes=fixed_shapes).refusal(one) == refusal

    def test_a_domain_counts(self) -> None:
        ours = Node("a", "MatMul", "com.example", (), ("a",), "float32", True)
        assert table().refusal(ours) == "no kernel for com.example.MatMul"

    def test_counts(self) -> None:
        found = by_table([node("a", "MatMul", "x"), node("b", "Sub", "a"), node("c", "MatMul", "b")], table())
        assert (found["nodes"], found["taken"], found["share"], found["partitions"]) == (3, 2, 0.6667, 2)
        assert found["operators"] == {"MatMul": {"nodes": 2, "taken": 2}, "Sub": {"nodes": 1, "taken": 0}}
        assert found["names"] == ["a", "c"]
        assert found["left"] == [{"name": "b", "operator": "Sub", "provider": None, "reason": "no kernel for Sub"}]

    def test_every_table_says_where_it_is_from(self) -> None:
        for name, row in TABLES.items():
            assert row.provider == name
            assert row.source and row.operators
            if name in PROVIDERS:
                assert row.onnxruntime_name == PROVIDERS[name].onnxruntime_name
                assert row.recipes == PROVIDERS[name].recipes


class TestPartitions:
    def test_a_chain_is_cut_by_what_is_not_taken(self) -> None:
        chain = [node(name, "X", before) for before, name in zip("xabcd", "abcde", strict=True)]
        assert partitions(chain, {0, 1, 3, 4}) == [[0, 1], [3, 4]]
        assert partitions(chain, set(range(5))) == [[0, 1, 2, 3, 4]]
        assert partitions(chain, set()) == []

    def test_a_branch_beside_does_not_cut(self) -> None:
        """The file's order alternates, but what is not taken needs nothing of the others before the end."""
        graph = [node("a", "X", "x"), node("s", "S", "x"), node("b", "X", "a"), node("c", "X", "b", "s")]
        assert partitions(graph, {0, 2, 3}) == [[0, 2], [3]]
        assert partitions([graph[1], graph[0], graph[2], graph[3]], {1, 2, 3}) == [[1, 2, 3]]

    def test_no_node_is_lost_or_twice(self) -> None:
        graph = [node(str(i), "X", *(str(j) for j in range(i) if (i * 7 + j) % 3 == 0)) for i in range(30)]
        taken = {i for i in range(30) if i % 4}
        found = partitions(graph, taken)
        assert sorted(index for group in found for index in group) == sorted(taken)
        assert len(found) > 1


class TestReading:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """A graph with a constant, a folded node, a cast, and shapes that are fixed, free, and made of values."""
        graph = helper.make_graph(
            [
                helper.make_node("Constant", [], ["two"], value=helper.make_tensor("", TensorProto.INT64, [1], [2])),
                helper.make_node("Neg", ["two"], ["folded"], name="folded"),
                helper.make_node("MatMul", ["x", "w"], ["y"], name="fixed"),
                helper.make_node("MatMul", ["z", "w"], ["free"], name="free"),
                helper.make_node("Shape", ["z"], ["shape"], name="shape"),
                helper.make_node("Cast", ["shape"], ["small"], name="cast", to=TensorProto.INT32),
                helper.make_node("Expand", ["y", "shape"], ["wide"], name="expand"),
                helper.make_node("Add", ["wide", "wide"], ["sum"], name="add"),
                helper.make_node("MatMulNBits", ["x", "w"], ["q"], name="q", domain="com.microsoft", bits=4, N=1),
                helper.make_node("Equal", ["small", "small"], ["same"], name="equal"),
                helper.make_node("Where", ["same", "y", "y"], ["out"], name="where"),
            ],
            "g",
            [
                helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, 2]),
                helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch_size", 2]),
            ],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT16, [1, 2])],
            [helper.make_tensor("w", TensorProto.FLOAT16, [2, 2], [1.0, 2.0, 3.0, 4.0])],
        )
        target = tmp_path / "graph.onnx"
        onnx.save(helper.make_model(graph), target)
        return target

    def test_types_and_shapes(self, path: Path) -> None:
        found = {one.name: (one.dtype, one.fixed) for one in nodes(path)}
        assert found == {
            "fixed": ("float16", True),
            "free": ("float32", False),
            "shape": ("float32", False),
            "cast": ("int64", True),
            "expand": ("float16", True),
            "add": ("float16", False),
            "q": ("float16", True),
            "equal": ("int32", True),
            "where": ("float16", True),
        }

    def test_attributes_and_domains(self, path: Path) -> None:
        quantized = next(one for one in nodes(path) if one.name == "q")
        assert quantized.attributes == {"bits": 4, "N": 1}
        assert quantized.label == "com.microsoft.MatMulNBits"
        assert quantized.inputs == ("x", "w")

    def test_no_graph(self, tmp_path: Path) -> None:
        (tmp_path / "x.onnx").write_bytes(b"no graph at all")
        with pytest.raises(BundleError, match=r"x\.onnx holds no graph"):
            nodes(tmp_path / "x.onnx")


def part(provider: str, *found: tuple[str, str, str]) -> SimpleNamespace:
    """A piece as ONNX Runtime gives it."""
    made = [SimpleNamespace(name=name, op_type=operator, domain=domain) for name, operator, domain in found]
    return SimpleNamespace(ep_name=provider, get_nodes=lambda: made)


class TestAssignment:
    def test_pieces_of_a_provider_that_compiles(self) -> None:
        answer = assigned.read(
            [
                part(GPU, ("a", "MatMul", ""), ("b", "Add", "ai.onnx")),
                part(GPU, ("d", "MatMulNBits", "com.microsoft")),
                part("CPUExecutionProvider", ("c", "Sub", "")),
            ],
            GPU,
        )
        assert answer.compiled == 2
        assert answer.nodes[1] == AssignedNode("b", "Add", GPU)
        assert answer.nodes[2].operator == "com.microsoft.MatMulNBits"

    def test_a_provider_that_runs_node_by_node_has_its_groups_counted(self) -> None:
        graph = [node(name, "X", before) for before, name in zip("xabc", "abcd", strict=True)]
        answer = assigned.read([part(GPU if name != "c" else "CPU", (name, "X", "")) for name in "abcd"], GPU)
        assert answer.compiled is None
        found = by_assignment(graph, answer, GPU, None)
        assert (found["taken"], found["partitions"]) == (3, 2)
        assert found["left"] == [
            {"name": "c", "operator": "X", "provider": "CPU", "reason": "ONNX Runtime does not say why"}
        ]

    def test_nodes_that_were_folded_cut_nothing(self) -> None:
        graph = [node(name, "X", before) for before, name in zip("xabc", "abcd", strict=True)]
        answer = Assignment(tuple(AssignedNode(name, "X", GPU) for name in "abd"), None)
        assert by_assignment(graph, answer, GPU, None)["partitions"] == 1

    def test_reasons(self) -> None:
        graph = [node("a", "Sub"), node("b", "MatMul", dtype="int64"), node("c", "MatMul")]
        kinds = table(operators=(Operator("MatMul", "", ("float32", "int64")),))
        answer = Assignment(tuple(AssignedNode(name, "?", "CPU") for name in "abcd"), None)
        reasons = [left["reason"] for left in by_assignment(graph, answer, GPU, kinds)["left"]]
        assert reasons == [
            "no kernel for Sub",
            "on shapes or lengths, which ONNX Runtime keeps on the CPU where they are needed",
            "ONNX Runtime does not say why",
            "a node that ONNX Runtime made; it does not say why",
        ]


class TestBundle:
    def test_cpu_takes_all(self, sample_bundle_fp32: Path) -> None:
        info = helium_onnx.inspect(sample_bundle_fp32, provider="cpu")
        assert info["method"] == "onnxruntime"
        assert info["source"].startswith("ONNX Runtime 1.")
        assert (info["problem"], info["use"], info["not_asked"]) == (None, [], None)
        for graph in info["graphs"].values():
            assert graph["nodes"] == graph["taken"] == len(graph["names"]) > 80
            assert (graph["partitions"], graph["left"]) == (1, [])

    def test_the_reader_sees_the_nodes_that_onnx_runtime_sees(self, sample_bundle_fp32: Path) -> None:
        path = sample_bundle_fp32 / "onnx" / "prefill.onnx"
        assert [one.name for one in nodes(path)] == [one.name for one in assign(path, CPU).nodes]

    def test_cuda_by_table(
        self,
        sample_bundle_fp32: Path,
        export_sample: Callable[[str], Path],
        record_property: Callable[[str, object], None],
    ) -> None:
        info = helium_onnx.inspect(sample_bundle_fp32, provider="cuda")
        if info["method"] != "table":
            pytest.skip("this machine has CUDA")
        assert "helium-onnx[cuda]" in info["remedy"]
        assert "cuda-fp16" in info["use"]
        reasons = {left["reason"] for left in info["graphs"]["decode"]["left"]}
        assert "no kernel for com.microsoft.GroupQueryAttention in float32" in reasons
        info = helium_onnx.inspect(export_sample("cuda-fp16"), provider="cuda")
        assert info["problem"] is None
        for name in ("prefill", "decode"):  # on a GPU, all of them run there (tests/device)
            assert info["graphs"][name]["left"] == []
        assert "native_decode" in info["skipped"]
        record_property("placement", share("cuda-fp16", info))

    def test_qnn_takes_no_free_shapes(self, sample_bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)
        info = helium_onnx.inspect(sample_bundle_fp32, provider="qnn")
        assert info["method"] == "table"
        assert "onnxruntime-qnn" in info["remedy"]
        assert "it takes no MatMul of prefill, as its shapes are known only at the call" in info["problem"]
        assert info["use"] == ["qnn-fp16", "qnn-int4"]

    def test_coreml_is_a_static_check(
        self,
        sample_bundle_fp32: Path,
        export_sample: Callable[[str], Path],
        record_property: Callable[[str, object], None],
    ) -> None:
        info = helium_onnx.inspect(sample_bundle_fp32, provider="coreml")
        if info["method"] != "table":
            pytest.skip("this machine has CoreML")
        assert info["use"] == ["coreml-fp16"]
        assert "macOS" in info["remedy"]
        assert "not run on Apple hardware" in info["note"]
        assert "coreml cannot run this bundle" in info["problem"]
        info = helium_onnx.inspect(export_sample("coreml-fp16"), provider="coreml")
        assert info["problem"] is None
        for name in ("prefill", "decode"):
            graph = info["graphs"][name]
            assert (graph["share"], graph["partitions"], graph["left"]) == (1.0, 1, [])
            assert not [operator for operator in graph["operators"] if "." in operator]
        record_property("placement", share("coreml-fp16", info))
        for recipe in ("qnn-fp16", "portable-fp32"):
            record_property("placement", share(recipe, helium_onnx.inspect(export_sample(recipe), provider="coreml")))

    def test_a_graph_that_does_not_load(self, sample_bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: Path, *_: object, **__: object) -> Assignment:
            raise placement.ProviderError("ONNX Runtime cannot load it", found=path.name)

        monkeypatch.setattr(placement, "assign", refuse)
        info = placement.placement(Bundle.open(sample_bundle_fp32), "cpu")
        graph = info["graphs"]["decode"]
        assert graph["taken"] == 0
        assert "ONNX Runtime cannot load it: decode.onnx" in graph["problem"]
        assert "the graph does not load" in info["problem"]

    def test_an_unknown_provider(self, sample_bundle_fp32: Path) -> None:
        with pytest.raises(UsageError) as caught:
            helium_onnx.inspect(sample_bundle_fp32, provider="nnapi")
        assert caught.value.expected == "one of cpu, cuda, qnn, webgpu, coreml"


class TestText:
    def show(self, info: dict[str, Any], width: int = 160) -> str:
        stream = io.StringIO()
        text.render(info, Console(file=stream, width=width))
        return stream.getvalue()

    def test_table(self, sample_bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)
        shown = self.show(helium_onnx.inspect(sample_bundle_fp32, provider="qnn"))
        assert "as read in a table of operators" in shown
        assert "to ask it: pip install" in shown
        assert "export the checkpoint with --recipe qnn-fp16 or qnn-int4" in shown
        assert "runs on" not in shown  # a table does not know

    def test_assigned(self, sample_bundle_fp32: Path) -> None:
        info = helium_onnx.inspect(sample_bundle_fp32, provider="cpu")
        shown = self.show(info)
        assert "as assigned by ONNX Runtime" in shown
        assert "100.0%" in shown
        info["graphs"]["decode"]["left"] = [{"name": "n", "operator": "X", "provider": "Other", "reason": "so [b]"}]
        shown = self.show(info)
        assert "runs on" in shown and "Other" in shown and "so [b]" in shown

    def test_json_holds_it(self, sample_bundle_fp32: Path) -> None:
        info = helium_onnx.inspect(sample_bundle_fp32, provider="coreml")
        assert json.loads(json.dumps(info, allow_nan=False)) == info
