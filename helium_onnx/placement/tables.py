"""Which operators a provider takes, where it cannot be asked: rows of data, each table with its source.

A table is for the operators that Helium's graphs have, and their near kin; what it lacks counts as not taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from helium_onnx.placement.graph import Node

_MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Operator:
    """One operator that a provider has a kernel for. ``dtypes`` are those of the input that chooses the kernel;
    ``attributes`` the values that an integer attribute may have.
    """

    name: str
    domain: str
    dtypes: tuple[str, ...]
    attributes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class OperatorTable:
    """``fixed_shapes``: no node is taken whose shapes are known only at the call. ``recipes`` make graphs for it.
    ``note`` is what a reader has to know beside the numbers.
    """

    provider: str
    onnxruntime_name: str
    source: str
    operators: tuple[Operator, ...]
    recipes: tuple[str, ...]
    fixed_shapes: bool = False
    note: str | None = None

    def refusal(self, node: Node) -> str | None:
        """Why the provider does not take ``node``; None where it does."""
        rows = [row for row in self.operators if (row.name, row.domain) == (node.operator, node.domain)]
        if not rows:
            return f"no kernel for {node.label}"
        if self.fixed_shapes and not node.fixed:
            return "its shapes are known only at the call"
        if node.dtype is not None and all(node.dtype not in row.dtypes for row in rows):
            return f"no kernel for {node.label} in {node.dtype}"
        for row in rows:
            for name, values in row.attributes.items():
                if name in node.attributes and node.attributes[name] not in values:
                    return f"{node.label} takes {name} {', '.join(map(str, values))} alone, not {node.attributes[name]}"
        return None


def _rows(names: str, dtypes: str, domain: str = "", **attributes: tuple[int, ...]) -> tuple[Operator, ...]:
    return tuple(Operator(name, domain, tuple(dtypes.split()), attributes) for name in names.split())


_ANY = "float32 float16 bfloat16 float64 int8 uint8 int32 int64 bool"
_FLOATS = "float32 float16 bfloat16"

CUDA = OperatorTable(
    provider="cuda",
    onnxruntime_name="CUDAExecutionProvider",
    source="kept by hand after ONNX Runtime's docs/OperatorKernels.md; cuda- bundles ran whole on an H200",
    operators=(
        *_rows("MatMul Sigmoid Softmax Sqrt Div ReduceMean ReduceSum Neg Pow", f"{_FLOATS} float64"),
        *_rows("Add Sub Mul Max", f"{_FLOATS} float64 int32 int64"),
        *_rows("Gather GatherND Cast Concat Expand Reshape Transpose Squeeze Unsqueeze Shape Slice Where Equal", _ANY),
        *_rows("Greater LessOrEqual", f"{_FLOATS} float64 int32 int64"),
        *_rows("And", "bool"),
        *_rows("ArgMax", "float32 float16 float64"),
        *_rows("CumSum Range", "float32 float16 float64 int32 int64"),
        *_rows("SimplifiedLayerNormalization", f"{_FLOATS} float64"),
        *_rows("FusedMatMul QuickGelu", f"{_FLOATS} float64", _MICROSOFT),
        *_rows("RotaryEmbedding SkipSimplifiedLayerNormalization GatherBlockQuantized", _FLOATS, _MICROSOFT),
        *_rows("GroupQueryAttention", "float16 bfloat16", _MICROSOFT),
        *_rows("MatMulNBits", _FLOATS, _MICROSOFT, bits=(2, 4, 8)),
    ),
    recipes=("cuda-fp16", "cuda-bf16", "cuda-int4"),
    note="nodes on shapes and lengths that have a kernel may still be kept on the CPU, where their results are needed",
)

WEBGPU = OperatorTable(
    provider="webgpu",
    onnxruntime_name="WebGpuExecutionProvider",
    source="kept by hand; agrees with what onnxruntime-ep-webgpu 0.4.0 took of our graphs",
    operators=(
        *_rows("MatMul Sigmoid Softmax Sqrt Div ReduceMean Pow Neg", "float32 float16"),
        *_rows("Add Sub Mul Max ReduceSum Greater LessOrEqual Equal Where", "float32 float16 int32"),
        *_rows("Cast Concat Expand Reshape Transpose Squeeze Unsqueeze Slice", "float32 float16 int32 int64 bool"),
        *_rows("Gather GatherND", "float32 float16 int32"),
        *_rows("SimplifiedLayerNormalization", "float32 float16"),
        *_rows("FusedMatMul QuickGelu RotaryEmbedding", "float32 float16", _MICROSOFT),
        *_rows("SkipSimplifiedLayerNormalization GatherBlockQuantized", "float32 float16", _MICROSOFT),
        *_rows("GroupQueryAttention", "float32 float16", _MICROSOFT),
        *_rows("MatMulNBits", "float32 float16", _MICROSOFT, bits=(2, 4, 8)),
    ),
    recipes=("cpu-fp32", "cpu-int4"),
    note="nodes on shapes and lengths that have a kernel may still be kept on the CPU, where their results are needed",
)

QNN = OperatorTable(
    provider="qnn",
    onnxruntime_name="QNNExecutionProvider",
    source="kept by hand; agrees with what onnxruntime-qnn 2.7.0 took of our graphs",
    operators=(
        *_rows("Add Sub Mul Div MatMul Gemm Sigmoid Softmax Sqrt Pow ReduceMean ReduceSum Neg Max", "float32 float16"),
        *_rows(
            "Reshape Transpose Slice Concat Split Cast Unsqueeze Squeeze Expand Where", "float32 float16 int32 int64"
        ),
        *_rows("Equal Greater LessOrEqual", "float32 float16 int32 int64"),
        *_rows("And", "bool"),
        # In float32 the NPU's compiler fails on these with an error about memory.
        *_rows("Gather RMSNormalization RotaryEmbedding Attention", "float16"),
        *_rows("MatMulNBits", "float16", _MICROSOFT, bits=(4,)),
    ),
    fixed_shapes=True,
    recipes=("qnn-fp16", "qnn-int4"),
    note="the NPU's compiler may still refuse a node that the table has: inspect on a machine with the package asks it",
)

COREML = OperatorTable(
    provider="coreml",
    onnxruntime_name="CoreMLExecutionProvider",
    source="kept by hand after the builders in onnxruntime 1.31.1 for macOS and ONNX Runtime's "
    "coreml_supported_mlprogram_ops.md; never run on Apple hardware",
    operators=(
        *_rows(
            "Add Sub Mul Div Max MatMul Gemm Sigmoid Softmax Sqrt Reciprocal ReduceMean ReduceSum ReduceMax "
            "LayerNormalization Gelu Tanh Cos Sin Reshape Transpose Concat Split Slice Squeeze Unsqueeze Tile Gather "
            "Identity",
            "float32 float16",
        ),
        *_rows("Pow", "float32"),
        *_rows("Cast", "float32 float16 int32 int64 bool"),
        *_rows("Shape", "float32 float16 int32 int64"),
        *_rows("QuickGelu", "float32 float16", _MICROSOFT),
    ),
    fixed_shapes=True,
    recipes=("coreml-fp16",),
    note="a static check: not run on Apple hardware. CoreML takes no 4-bit weights and no past of length zero",
)

TABLES: dict[str, OperatorTable] = {table.provider: table for table in (CUDA, WEBGPU, QNN, COREML)}
