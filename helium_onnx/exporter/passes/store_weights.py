"""Tie the graph's weights to the weights file: linear layers, the embedding, and what is left."""

from __future__ import annotations

import onnx_ir as ir

from helium_onnx.checkpoint import EMBEDDING, HEAD, SCORE
from helium_onnx.config import HeliumConfig
from helium_onnx.exporter.passes.rewriting import MICROSOFT, SOURCE, Rewriter, static_shape
from helium_onnx.exporter.stored_tensors import Keep, Quantized, RopeTables, Transform, Transposed
from helium_onnx.exporter.weights import WeightPlan
from helium_onnx.recipe import MatrixSettings, Quantization


class StoreLinear(ir.passes.InPlacePass):
    """Pattern: ``MatMul(x, Transpose(weight))``, which is how the exporter writes a Linear of ``weight [N, K]``.

    Replacement, where the recipe does not quantize it: in float32, and where ``transposed`` asks for it (for runtimes
    that know no ``FusedMatMul``), ``MatMul(x, weight.transposed)`` over the matrix stored ``[K, N]``; in half precision
    (SetComputeType), whose kernels read either way at the same speed, ``com.microsoft::FusedMatMul(x, weight)`` with
    ``transB=1`` over the matrix as the checkpoint has it. Else
    ``com.microsoft::MatMulNBits(x, weight.quantized, weight.scales[, weight.zero_points])``, with a ``Cast`` of scales
    that are not in the type of ``x``. A head that is tied to the embedding and stored alike reads the embedding's
    bytes.
    """

    def __init__(
        self, plan: WeightPlan, config: HeliumConfig, quantization: Quantization, *, transposed: bool = False
    ) -> None:
        super().__init__()
        self.plan, self.config, self.quantization, self.transposed = plan, config, quantization, transposed

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = False
        for transpose in [node for node in model.graph if node.op_type == "Transpose" and not node.domain]:
            weight = transpose.inputs[0]
            if weight is None or not weight.is_initializer() or len(weight.shape or ()) != 2:
                continue
            for matmul in [user for user, _ in transpose.outputs[0].uses()]:
                assert matmul.op_type == "MatMul", f"{weight.name} is read by {matmul.op_type}"
                self._store(model.graph, matmul, weight)
            model.graph.remove(transpose, safe=True)
            changed = True
        return ir.passes.PassResult(model, modified=changed)

    def _store(self, graph: ir.Graph, matmul: ir.Node, weight: ir.Value) -> None:
        # The exporter keeps one of a tied pair's names for both, so the head is known by its output.
        is_head = weight.name != SCORE and any(output.name == "logits" for output in matmul.outputs)
        name = HEAD if is_head else str(weight.name)
        source = EMBEDDING if is_head and self.config.tie_word_embeddings else weight.metadata_props.get(SOURCE, name)
        rows, columns = static_shape(weight)
        settings = self.quantization.settings_of(name if is_head else source.split("+")[0])
        rewriter, x = Rewriter(matmul), matmul.inputs[0]
        compute = weight.dtype or ir.DataType.FLOAT
        if not settings.quantized and (self.transposed or compute == ir.DataType.FLOAT):
            transposed = initializers(graph, self.plan, Transposed(source, name, (rows, columns), compute))
            rewriter.replace(rewriter.op("MatMul", x, *transposed))
            return
        if not settings.quantized:
            tied = source == EMBEDDING and not self.quantization.settings_of(EMBEDDING).quantized
            kept = Keep(source, (rows, columns), compute, None if tied or source == name else name)
            stored = initializers(graph, self.plan, kept)
            rewriter.replace(rewriter.op("FusedMatMul", x, *stored, domain=MICROSOFT, transB=1))
            return
        wanted = Quantized(source, name, (rows, columns), settings)
        shared = source == EMBEDDING and settings == self.quantization.settings_of(EMBEDDING)
        if shared and columns % settings.block_size == 0:
            weights = [_alias(graph, self.plan, EMBEDDING, tensor.name, tensor.shape) for tensor in wanted.tensors()]
        else:
            weights = initializers(graph, self.plan, wanted)
        data, scales, *zero_points = weights
        y = rewriter.op(
            "MatMulNBits", x, data, _converted(rewriter, scales, compute), *zero_points,
            domain=MICROSOFT,
            K=columns,
            N=rows,
            bits=settings.bits,
            block_size=settings.block_size,
            accuracy_level=self.quantization.accuracy_level,
        )  # fmt: skip
        rewriter.replace(y)


class StoreEmbedding(ir.passes.InPlacePass):
    """Pattern: ``Gather(model.embed_tokens.weight, input_ids)``.

    Replacement, where the recipe quantizes it: ``com.microsoft::GatherBlockQuantized(quantized, input_ids, scales[,
    zero_points])``, with a ``Cast`` of scales that are not in the type of the table. Else the node stays.
    """

    def __init__(self, plan: WeightPlan, quantization: Quantization) -> None:
        super().__init__()
        self.plan, self.quantization = plan, quantization

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        settings: MatrixSettings = self.quantization.settings_of(EMBEDDING)
        gathers = [node for node in model.graph if node.op_type == "Gather" and not node.domain]
        gather = next((node for node in gathers if (v := node.inputs[0]) is not None and v.name == EMBEDDING), None)
        if gather is None:
            return ir.passes.PassResult(model, modified=False)
        table, input_ids = gather.inputs
        assert table is not None and table.is_initializer()
        rows, columns = static_shape(table)
        compute = table.dtype or ir.DataType.FLOAT
        if not settings.quantized:
            self.plan.add(Keep(EMBEDDING, (rows, columns), compute))
            return ir.passes.PassResult(model, modified=False)
        transform = Quantized(EMBEDDING, EMBEDDING, (rows, columns), settings, gathered=True)
        data, scales, *zero_points = initializers(model.graph, self.plan, transform)
        rewriter = Rewriter(gather)
        y = rewriter.op(
            "GatherBlockQuantized", data, input_ids, _converted(rewriter, scales, compute), *zero_points,
            domain=MICROSOFT,
            bits=settings.bits,
            block_size=settings.block_size,
            gather_axis=0,
            quantize_axis=1,
        )  # fmt: skip
        rewriter.replace(y)
        return ir.passes.PassResult(model, modified=True)


class StoreRemaining(ir.passes.InPlacePass):
    """Pattern: initializers that no earlier pass has stored: norm weights, rotary tables, a plain embedding.

    Replacement: the same, stored in their type; initializers that nobody reads any more are removed.
    """

    def __init__(self, plan: WeightPlan, config: HeliumConfig) -> None:
        super().__init__()
        self.plan, self.config = plan, config

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = False
        for name, value in list(model.graph.initializers.items()):
            if not value.uses():
                del model.graph.initializers[name]
            elif name in ("cos", "sin"):
                self.plan.add(RopeTables(self.config, value.dtype or ir.DataType.FLOAT))
                value.const_value = self.plan.external(name)
            elif not self.plan.has(name) and not name.endswith((".quantized", ".scales", ".zero_points")):
                self.plan.add(Keep(name, static_shape(value), value.dtype or ir.DataType.FLOAT))
                value.const_value = self.plan.external(name)
            elif self.plan.has(name):
                value.const_value = self.plan.external(name)
            else:
                continue
            changed = True
        return ir.passes.PassResult(model, modified=changed)


def initializers(graph: ir.Graph, plan: WeightPlan, transform: Transform) -> list[ir.Value]:
    """The stored tensors of ``transform`` as initializers of ``graph``."""
    plan.add(transform)
    return [_initializer(graph, plan.external(tensor.name)) for tensor in transform.tensors()]


def _converted(rewriter: Rewriter, scales: ir.Value, compute: ir.DataType) -> ir.Value:
    """``scales`` as the operators take them beside activations in ``compute``: runtimes convert when they load."""
    if scales.dtype == compute:
        return scales
    converted = rewriter.op("Cast", scales, to=compute)
    converted.type, converted.shape = ir.TensorType(compute), scales.shape
    return converted


def _alias(graph: ir.Graph, plan: WeightPlan, stored: str, name: str, shape: tuple[int, ...]) -> ir.Value:
    """An initializer ``name`` over the bytes of a tensor that was stored for ``stored``."""
    tensor = plan.external(stored + name.removeprefix(HEAD), shape)
    tensor.name = name
    return _initializer(graph, tensor)


def _initializer(graph: ir.Graph, tensor: ir.ExternalTensor) -> ir.Value:
    name = str(tensor.name)
    if name not in graph.initializers:
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]
