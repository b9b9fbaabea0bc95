"""Let a graph take LoRA adapters as inputs that may be left out."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from helium_onnx.adapters.parameters import LinearModule, linear_modules
from helium_onnx.config import HeliumConfig
from helium_onnx.exporter.passes.rewriting import KERNELS, MICROSOFT, Rewriter

_STORED = (".quantized", ".transposed")


class AddLowRank(ir.passes.InPlacePass):
    """Pattern: a node that multiplies by stored weights of the layers' linear modules: ``MatMul(x, transposed)`` over
    one, ``MatMulNBits(x, quantized, ...)`` over one or over query, key and value packed, or
    ``helium_onnx.kernels::QuantizedLinear(x, ...)`` over several.

    Replacement: behind MatMulNBits and MatMul, ``Add(y, MatMul(MatMul(x, A), B))``, the updates of packed weights put
    together by ``Concat``; behind QuantizedLinear, ``helium_onnx.kernels::LowRankUpdate(y, x, A, B, ...)``. A
    ``[columns, rank]`` and B ``[rank, rows]`` are inputs of the graph, named after their module (``lora_A.weight``,
    ``lora_B.weight``), and initializers of rank 0: who gives none runs the model without an adapter.
    """

    def __init__(self, config: HeliumConfig) -> None:
        super().__init__()
        self.modules = {module.name: module for module in linear_modules(config)}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        adapted = 0
        for node in list(model.graph):
            modules = self._modules_of(node)
            if modules:
                self._add(model.graph, node, modules)
                adapted += len(modules)
        assert adapted == len(self.modules), f"{adapted} of {len(self.modules)} linear modules take adapters"
        return ir.passes.PassResult(model, modified=bool(adapted))

    def _modules_of(self, node: ir.Node) -> list[LinearModule]:
        """The modules whose products ``node`` makes, in their order; none where it is another node."""
        kinds = {("", "MatMul"), (MICROSOFT, "MatMulNBits"), (KERNELS, "QuantizedLinear")}
        if (node.domain, node.op_type) not in kinds:
            return []
        names: list[str] = []
        for value in node.inputs[1:]:
            name = str(value.name) if value is not None and value.is_initializer() else ""
            if name.endswith(_STORED):
                module = name.rpartition(".")[0].removesuffix(".weight")
                packed = module.endswith("qkv_proj")
                names += [module.replace("qkv_proj", f"{x}_proj") for x in "qkv"] if packed else [module]
        return [self.modules[name] for name in names if name in self.modules]

    def _add(self, graph: ir.Graph, node: ir.Node, modules: list[LinearModule]) -> None:
        y, x, rewriter = node.outputs[0], node.inputs[0], Rewriter(node, behind=True)
        readers = tuple(y.uses())
        inputs = [_optional(graph, name, dims) for module in modules for name, dims in module.parameters()]
        if node.domain == KERNELS:
            updated = rewriter.op(
                "LowRankUpdate", y, x, *inputs,
                domain=KERNELS,
                columns=modules[0].columns,
                rows=[module.rows for module in modules],
                gated=node.attributes["gated"].as_int(),
            )  # fmt: skip
        else:
            pairs = zip(inputs[::2], inputs[1::2], strict=True)
            updates = [rewriter.op("MatMul", rewriter.op("MatMul", x, a), b) for a, b in pairs]
            update = updates[0] if len(updates) == 1 else rewriter.op("Concat", *updates, axis=-1)
            updated = rewriter.op("Add", y, update)
        updated.shape, updated.type = y.shape, y.type
        for reader, index in readers:
            reader.replace_input_with(index, updated)


def _optional(graph: ir.Graph, name: str, dims: tuple[int | str, int | str]) -> ir.Value:
    nothing = ir.tensor(np.zeros([dim if isinstance(dim, int) else 0 for dim in dims], np.float32), name=name)
    value = ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(ir.DataType.FLOAT), const_value=nothing)
    graph.inputs.append(value)
    graph.register_initializer(value)
    return value
