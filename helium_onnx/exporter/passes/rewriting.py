"""Small tools that the passes share: find nodes, build a replacement in front of one, put it in its place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

MICROSOFT = "com.microsoft"
#: Of the operators in helium_onnx/kernels.
KERNELS = "helium_onnx.kernels"
SCOPES = "pkg.torch.onnx.name_scopes"
#: On a weight that is not the checkpoint's of the same name: the one it is made from, or several joined by "+".
SOURCE = "helium_onnx.source"


def nodes_of(model: ir.Model, domain: str, op_type: str) -> list[ir.Node]:
    """The nodes of one operator, in graph order."""
    return [node for node in model.graph if node.domain == domain and node.op_type == op_type]


def logits_and_head(model: ir.Model) -> tuple[ir.Value, ir.Node] | None:
    """The graph output ``logits`` and the node that makes it; None where there is none."""
    logits = next((value for value in model.graph.outputs if value.name == "logits"), None)
    head = None if logits is None else logits.producer()
    return None if logits is None or head is None else (logits, head)


def read_one_position(logits: ir.Value, head: ir.Node, hidden: ir.Value) -> None:
    """Let ``head`` read ``hidden``, of one token a row, so that ``logits`` are ``[batch_size, 1, vocab_size]``."""
    head.replace_input_with(0, hidden)
    assert logits.shape is not None
    logits.shape = ir.Shape(["batch_size", 1, logits.shape[2]])


def static_shape(value: ir.Value) -> tuple[int, ...]:
    """The shape of a weight, whose dimensions are all known."""
    assert value.shape is not None
    dims = tuple(d for d in value.shape if isinstance(d, int))
    assert len(dims) == len(value.shape), f"{value.name} has a symbolic dimension"
    return dims


class Rewriter:
    """Builds nodes in front of ``node`` and replaces it.

    With ``behind``, nodes come after it, in the order in which they are made, and read what it gives. They take their
    module scope from ``scope``, or from ``node``.
    """

    def __init__(self, node: ir.Node, *, behind: bool = False, scope: ir.Node | None = None) -> None:
        assert node.graph is not None
        self.node = node
        self._graph = node.graph
        self._scope = (scope or node).metadata_props.get(SCOPES, "")
        self._last = node if behind else None

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        domain: str = "",
        **attributes: int | float | str | Sequence[int],
    ) -> ir.Value:
        """One node of one output."""
        return self.op_outputs(op_type, *inputs, outputs=1, domain=domain, **attributes)[0]

    def op_outputs(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        outputs: int,
        domain: str = "",
        **attributes: int | float | str | Sequence[int],
    ) -> Sequence[ir.Value]:
        """One node of several outputs."""
        new = ir.Node(
            domain,
            op_type,
            inputs,
            attributes=ir.convenience.convert_attributes(attributes),
            num_outputs=outputs,
            metadata_props={SCOPES: self._scope},
        )
        self._insert(new)
        return new.outputs

    def constant(
        self, value: int | float | list[int] | NDArray[np.generic], dtype: ir.DataType = ir.DataType.INT64
    ) -> ir.Value:
        """A ``Constant`` node: small numbers stay inside the graph file."""
        tensor = ir.tensor(np.array(value, dtype=dtype.numpy()))
        new = ir.Node(
            "", "Constant", [], attributes=[ir.AttrTensor("value", tensor)], metadata_props={SCOPES: self._scope}
        )
        self._insert(new)
        return new.outputs[0]

    def _insert(self, new: ir.Node) -> None:
        if self._last is None:
            self._graph.insert_before(self.node, new)
        else:
            self._graph.insert_after(self._last, new)
            self._last = new

    def replace(self, *values: ir.Value) -> None:
        """Let ``values`` take the place of the node's outputs, and remove the node."""
        replace_values(self._graph, self.node.outputs, values)
        self._graph.remove(self.node, safe=True)


def replace_values(graph: ir.Graph, old: Sequence[ir.Value], new: Sequence[ir.Value]) -> None:
    """Readers of ``old`` read ``new``; a graph output keeps its name, shape and type."""
    for before, after in zip(old, new, strict=True):
        if after.shape is None:
            after.shape = before.shape
        if after.type is None:
            after.type = before.type
        for user, index in tuple(before.uses()):
            user.replace_input_with(index, after)
        if before.is_graph_output():
            name, before.name = before.name, None
            after.name, after.shape, after.type = name, before.shape, before.type
            for position, output in enumerate(graph.outputs):
                if output is before:
                    graph.outputs[position] = after
