"""Lower the embedding to the operator of our own CUDA kernels."""

from __future__ import annotations

import onnx_ir as ir

from helium_onnx.checkpoint import EMBEDDING
from helium_onnx.exporter.passes.rewriting import KERNELS, MICROSOFT, Rewriter, nodes_of, static_shape


class LowerEmbeddingDevice(ir.passes.InPlacePass):
    """Pattern: ``Gather(model.embed_tokens.weight, input_ids)`` or ``com.microsoft::GatherBlockQuantized(quanta,
    input_ids, scales[, zeros])``.

    Replacement: ``helium_onnx.kernels::DeviceEmbedding(input_ids, table | quanta, scales[, zeros])`` over the same
    tensors, which gives float32 ``[batch_size, 1, columns]``.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        gathers = [node for node in nodes_of(model, "", "Gather") if (v := node.inputs[0]) and v.name == EMBEDDING]
        quantized = nodes_of(model, MICROSOFT, "GatherBlockQuantized")
        for node in (*gathers, *quantized):
            table, input_ids, *rest = node.inputs
            assert table is not None
            bits = node.attributes["bits"].as_int() if node in quantized else 16
            columns = static_shape(table)[1] * (8 // bits if bits < 16 else 1)
            rewriter = Rewriter(node)
            x = rewriter.op(
                "DeviceEmbedding", input_ids, table, *rest,
                domain=KERNELS,
                bits=bits,
                block_size=node.attributes["block_size"].as_int() if node in quantized else 0,
                has_zeros=int(len(rest) == 2),
                columns=columns,
            )  # fmt: skip
            x.type, x.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch_size", 1, columns])
            rewriter.replace(x)
        return ir.passes.PassResult(model, modified=bool(gathers or quantized))
