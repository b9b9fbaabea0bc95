"""NameNodes: names tell the module, are unique, and nothing of the exporter's machine is left."""

from __future__ import annotations

import onnx_ir as ir

from helium_onnx.exporter.passes.name_nodes import NameNodes


def test_names(traced: ir.Model) -> None:
    kept = [value.name for value in (*traced.graph.inputs, *traced.graph.outputs)]
    initializers = set(traced.graph.initializers)
    assert NameNodes()(traced).modified
    names = [node.name for node in traced.graph]
    assert len(set(names)) == len(names)
    # The repeated layer has names of its own.
    for layer in range(3):
        assert f"model.layers.{layer}.mlp.up_proj.MatMul" in names
        assert f"model.layers.{layer}.self_attn.CausalAttention" in names
    assert "lm_head.MatMul" in names
    outputs = {output.name for node in traced.graph for output in node.outputs}
    assert "model.layers.2.mlp.up_proj.MatMul.output" in outputs
    assert "model.layers.0.self_attn.CausalAttention.0" in outputs
    assert [value.name for value in (*traced.graph.inputs, *traced.graph.outputs)] == kept
    assert set(traced.graph.initializers) == initializers


def test_no_metadata_is_left(traced: ir.Model) -> None:
    assert any(node.metadata_props for node in traced.graph)
    NameNodes()(traced)
    assert not traced.metadata_props
    assert not traced.graph.metadata_props
    for node in traced.graph:
        assert not node.metadata_props
        assert not node.doc_string
        assert not any(output.metadata_props for output in node.outputs)
    assert "/" not in "".join(str(node.name) for node in traced.graph)


def test_a_second_time_from_the_same_scopes(traced: ir.Model) -> None:
    other = traced.clone()
    for model in (traced, other):
        NameNodes()(model)
    assert [node.name for node in traced.graph] == [node.name for node in other.graph]


def test_nothing_to_do() -> None:
    x = ir.Value(name="x")
    node = ir.Node("", "Relu", [x], name="Relu")
    node.outputs[0].name = "Relu.output"
    model = ir.Model(ir.Graph([x], [], nodes=[node], opset_imports={"": 18}), ir_version=10)
    assert not NameNodes()(model).modified
