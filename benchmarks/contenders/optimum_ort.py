"""optimum-onnx's ``ORTModelForCausalLM``. It exports no int4, so it runs our bundle's ``onnx/model.onnx``, as it is."""

from __future__ import annotations

import dataclasses

from common import Environment

from contenders import ours
from contenders.model import Contender, Runtime, Weights


def single_graph(bundle: Weights) -> Weights:
    return dataclasses.replace(bundle, files=("onnx/model.onnx", "onnx/model.onnx_data"))


assert ours.RUNTIME.float32 is not None
RUNTIME = Runtime(
    "optimum-onnx",
    Environment(
        "optimum",
        (
            ("torch==2.13.0",),
            ("torch==2.13.0", "optimum-onnx==0.1.0", "optimum~=2.1.0", "transformers==4.57.6", "onnxruntime==1.31.1"),
        ),
    ),
    "optimum_ort.py",
    float32=single_graph(ours.RUNTIME.float32),
)
ROWS = tuple(
    Contender(
        f"optimum-onnx, our {row.name.removeprefix('helium-onnx ')}",
        RUNTIME,
        single_graph(row.weights),
        row.storage,
        row.name,
        # As it comes on a CPU: no IO binding.
        alternatives={"IO binding": {"use_io_binding": True}},
    )
    for row in ours.ROWS
    if row.name == ours.BLOCK_64
)
