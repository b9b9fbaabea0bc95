"""What attention over keys and values in float16 or int8 takes: see export/README.md.

    python benchmarks/key_value_cache.py        # in the 2 B model's sizes, a minute on 2 cores

One layer's attention, medians of interleaved runs over the buffers of several layers. What such caches cost in
fidelity is in benchmarks/quantization.py.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from helium_onnx.runtimes.graph_loading import session_options
from helium_onnx.runtimes.providers import default_threads, execution_provider

CACHES = ("float32", "float16", "int8")
HEADS, SIZE = 20, 128  # of kyutai/helium-1-preview-2b
LAYERS = 6  # whose buffers take turns, so that none stays in the processor's caches
STEPS = ((512, 1), (2048, 1), (0, 512), (1536, 512))  # past tokens, new tokens


def times() -> None:
    """Print the table: milliseconds, and their ratio to float32's."""
    print("| cache | " + " | ".join(f"{new} after {past} (ms)" for past, new in STEPS) + " |\n|---|---|---|---|---|")
    sessions = {cache: _attention(cache) for cache in CACHES}
    found: dict[str, list[float]] = {cache: [] for cache in CACHES}
    generator = np.random.default_rng(0)
    for past, new in STEPS:
        bindings = {cache: [_bound(session, cache, past, new, generator) for _ in range(LAYERS)]
                    for cache, session in sessions.items()}  # fmt: skip
        taken: dict[str, list[float]] = {cache: [] for cache in CACHES}
        for _ in range(12 if new == 1 else 3):
            for cache, layers in bindings.items():
                for binding, _ in layers:
                    start = time.perf_counter()
                    sessions[cache].run_with_iobinding(binding)
                    taken[cache].append(1e3 * (time.perf_counter() - start))
        for cache, each in taken.items():
            found[cache].append(statistics.median(each[LAYERS:]))
    for cache, row in found.items():
        ratios = [f"{ms:.2f} ({ms / base:.1f})" for ms, base in zip(row, found["float32"], strict=True)]
        print(f"| {cache} | {' | '.join(ratios)} |")


def _attention(cache: str) -> ort.InferenceSession:
    """One node as the passes write it: packed query, key and value, rotary embedding inside."""
    compute = "float16" if cache == "float16" else "float32"
    kinds = {name: helper.np_dtype_to_tensor_dtype(np.dtype(name)) for name in ("float32", cache, compute)}
    angles = np.outer(np.arange(4096), 100_000.0 ** (-np.arange(0, SIZE, 2) / SIZE))
    constants = {"cos": np.cos(angles).astype(compute), "sin": np.sin(angles).astype(compute)}
    inputs = ["query", "", "", "past_key", "past_value", "lengths", "total", "cos", "sin"]
    quantized: dict[str, Any] = {}
    if cache == "int8":
        constants |= dict.fromkeys(("key_scales", "value_scales"), np.full((1, HEADS, 1, SIZE), 0.03, np.float32))
        inputs += ["", "", "", "key_scales", "value_scales"]
        quantized = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
    nodes = [
        helper.make_node("Cast", ["x"], ["query"], to=kinds[compute]),
        helper.make_node(
            "GroupQueryAttention", inputs, ["mixed", "present_key", "present_value"], domain="com.microsoft",
            num_heads=HEADS, kv_num_heads=HEADS, do_rotary=1, rotary_interleaved=1, **quantized,
        ),
        helper.make_node("Cast", ["mixed"], ["y"], to=kinds["float32"]),
    ]  # fmt: skip
    past: list[str | int | None] = [1, HEADS, "p", SIZE]
    graph = helper.make_graph(
        nodes,
        "attention",
        [
            helper.make_tensor_value_info("x", kinds["float32"], [1, "s", 3 * HEADS * SIZE]),
            *(helper.make_tensor_value_info(name, kinds[cache], past) for name in ("past_key", "past_value")),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, [1]),
            helper.make_tensor_value_info("total", TensorProto.INT32, []),
        ],
        [
            helper.make_tensor_value_info("y", kinds["float32"], [1, "s", HEADS * SIZE]),
            *(helper.make_tensor_value_info(name, kinds[cache], past) for name in ("present_key", "present_value")),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = session_options(execution_provider("cpu"), default_threads())
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _bound(
    session: ort.InferenceSession, cache: str, past: int, new: int, generator: np.random.Generator
) -> tuple[ort.IOBinding, list[NDArray[Any]]]:
    """A binding whose past and present are one buffer, and the arrays that it reads."""
    scale = 30 if cache == "int8" else 1
    shape = (1, HEADS, past + new, SIZE)
    buffers = {name: (scale * generator.standard_normal(shape)).astype(cache) for name in ("key", "value")}
    x = generator.standard_normal((1, new, 3 * HEADS * SIZE)).astype(np.float32)
    arrays: dict[str, NDArray[Any]] = {
        "x": x, "lengths": np.array([past + new - 1], np.int32), "total": np.array(past + new, np.int32),
        **{f"past_{name}": buffer for name, buffer in buffers.items()},
    }  # fmt: skip
    binding = session.io_binding()
    for name, array in arrays.items():
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    for name, buffer in buffers.items():
        binding.bind_output(f"present_{name}", "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
    binding.bind_output("y", "cpu")
    return binding, [*arrays.values()]


if __name__ == "__main__":
    times()
