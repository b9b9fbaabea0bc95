"""Give the key/value cache the type that the recipe asks for."""

from __future__ import annotations

import re
from collections.abc import Sequence

import onnx_ir as ir

from helium_onnx.exporter.key_value_scales import LayerScales
from helium_onnx.exporter.passes.group_query import computed_type
from helium_onnx.exporter.passes.rewriting import nodes_of
from helium_onnx.exporter.passes.store_weights import initializers
from helium_onnx.exporter.stored_tensors import KeyValueScales
from helium_onnx.exporter.weights import WeightPlan
from helium_onnx.modeling import DOMAIN
from helium_onnx.recipe import Precision

_LAYER = re.compile(r"past_key_values\.(\d+)\.key")


class StoreKeyValueCache(ir.passes.InPlacePass):
    """Pattern: ``helium_onnx::CausalAttention(q, k, v, past_key, past_value, attention_mask, cos, sin)``.

    Replacement: the same over past and present of the recipe's type, of which the lowering passes make what the kernel
    asks for. For float16 the rotary tables ``cos`` and ``sin`` are float16 too, since the kernel is then float16
    throughout; for int8 two inputs follow, the layer's scales of keys and of values, in float32 whatever the graph
    computes in. The type that it computes in changes nothing, and neither does any where there is no past.
    """

    def __init__(self, plan: WeightPlan, precision: Precision, scales: Sequence[LayerScales] | None) -> None:
        super().__init__()
        self.plan, self.scales = plan, scales
        self.dtype = ir.DataType[{"float32": "FLOAT"}.get(precision.key_value_cache, precision.key_value_cache.upper())]

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = nodes_of(model, DOMAIN, "CausalAttention")
        if not nodes or nodes[0].inputs[3] is None or self.dtype == computed_type(nodes[0]):
            return ir.passes.PassResult(model, modified=False)
        for node in nodes:
            for value in (*node.inputs[3:5], *node.outputs[1:3]):
                assert value is not None
                value.type = ir.TensorType(self.dtype)
            if self.dtype == ir.DataType.INT8:
                self._add_scales(model.graph, node)
        if self.dtype == ir.DataType.FLOAT16:
            for table in nodes[0].inputs[6:8]:
                assert table is not None and table.is_initializer()
                table.type = ir.TensorType(ir.DataType.FLOAT16)
        return ir.passes.PassResult(model, modified=True)

    def _add_scales(self, graph: ir.Graph, node: ir.Node) -> None:
        past = node.inputs[3]
        match = _LAYER.fullmatch(str(past.name)) if past is not None else None
        assert match is not None, "the keys that attention reads are no layer's past"
        assert self.scales is not None, "an int8 cache without scales"
        layer = int(match[1])
        scales = KeyValueScales(layer, self.scales[layer])
        node.resize_inputs(10)
        for index, value in enumerate(initializers(graph, self.plan, scales), start=8):
            node.replace_input_with(index, value)
