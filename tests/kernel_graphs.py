"""Models of one operator of helium_onnx/kernels, and ONNX Runtime to run them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from helium_onnx import kernels

DOMAIN = "helium_onnx.kernels"
INSTRUCTION_SETS = ("avx512-vnni", "avx2", "generic")

Array = NDArray[Any]


def model(
    op_type: str,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Any],
    weights: Mapping[str, Array] | None = None,
    **attributes: object,
) -> bytes:
    """One node: dtypes are those of ``inputs`` (fed at each run), of ``outputs`` and of ``weights`` (stored)."""

    def value(name: str, dtype: Any) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), None)

    weights = weights or {}
    node = helper.make_node(op_type, [*inputs, *weights], list(outputs), domain=DOMAIN, **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [value(name, array.dtype) for name, array in inputs.items()],
        [value(name, dtype) for name, dtype in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    made: bytes = helper.make_model(graph, ir_version=10, opset_imports=opsets).SerializeToString()
    return made


def session(model: bytes, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(kernels.LIBRARY))
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # errors come as exceptions
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def bits(x: Array) -> Array:
    """Numbers as their bits: -0 is not 0, and a NaN is itself."""
    return x.view(f"u{x.itemsize}")


def assert_same_bits(found: Array, expected: Array) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(bits(found), bits(expected))
