"""What a prefill or a decode step must read, write and compute at least, counted from the graph and the manifest.

Counted are: weights, once a call however many rows there are; of embeddings and rotary tables, the rows of the new
tokens; keys and values, each held token read once and each new one read and written once; the multiplications and
additions of matrices and of attention. Not counted is what stays in a processor's caches (activations, logits), what
is small (norms, softmax, rounding activations to int8), and what a graph does beyond the necessary (portable graphs
copy keys and values every step): that is part of the gap between a ceiling and a measurement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from helium_onnx.benchmark.graph_weights import Reading, readings
from helium_onnx.bundle import Bundle
from helium_onnx.errors import BundleError
from helium_onnx.inspection import matrix_shapes
from helium_onnx.manifest import TensorRecord

#: With it MatMulNBits rounds activations to int8 and multiplies integers. Source: ONNX Runtime, the operator's schema.
_INTEGER_LEVEL = 4


@dataclass(frozen=True)
class Work:
    """What one call must do at least. Bytes go through memory; an operation is one multiplication or one addition."""

    weight_bytes: int
    embedding_bytes: int
    cache_read_bytes: int
    cache_write_bytes: int
    int8_operations: int
    fp32_operations: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.embedding_bytes + self.cache_read_bytes + self.cache_write_bytes


@dataclass(frozen=True)
class _Graph:
    """One graph, added up: bytes a call, bytes a new token, and weights that each token is multiplied with."""

    weight_bytes: int
    row_bytes: int
    position_bytes: int
    int8_weights: int
    fp32_weights: int
    int8_last: int  # weights that the last token alone is multiplied with: a prefill's head
    fp32_last: int


class Traffic:
    """Counts for one bundle, of its graphs ``prefill`` and ``decode`` or of the ``native`` ones.

    Raises BundleError where graphs and manifest do not say enough.
    """

    def __init__(self, bundle: Bundle, *, native: bool = False) -> None:
        config = bundle.model_config
        sizes = matrix_shapes(config)
        if sizes is None:
            raise BundleError(f"{bundle.path}: config.json lacks sizes", expected="hidden_size and the like")
        names = {phase: f"native_{phase}" if native else phase for phase in ("prefill", "decode")}
        bundle.graph_path(names["decode"])  # or BundleError
        specs = bundle.manifest.graphs[names["decode"]].inputs
        cache = [spec for spec in specs if spec.name.startswith("past_key_values.")]
        #: Bytes of one token's keys and values, all layers together.
        self.cache_token_bytes = sum(
            int(spec.dims[1]) * int(spec.dims[3]) * np.dtype(spec.dtype).itemsize for spec in cache
        )
        # A query head multiplies with the keys (one tensor of the two) and then with the values (the other).
        self._attention = sum(int(config["num_attention_heads"]) * int(spec.dims[3]) for spec in cache)
        self._graphs = {phase: _add_up(bundle, name, sizes) for phase, name in names.items()}

    def decode(self, *, past: int, batch: int) -> Work:
        """One step of ``batch`` rows that hold ``past`` tokens each."""
        graph = self._graphs["decode"]
        return Work(
            weight_bytes=graph.weight_bytes,
            embedding_bytes=batch * graph.row_bytes + graph.position_bytes,
            cache_read_bytes=batch * (past + 1) * self.cache_token_bytes,
            cache_write_bytes=batch * self.cache_token_bytes,
            int8_operations=2 * batch * (graph.int8_weights + graph.int8_last),
            fp32_operations=2 * batch * (graph.fp32_weights + graph.fp32_last + (past + 1) * self._attention),
        )

    def prefill(self, tokens: int) -> Work:
        """A prompt of ``tokens`` tokens, of which each attends to itself and to those before it."""
        graph = self._graphs["prefill"]
        pairs = tokens * (tokens + 1) // 2
        return Work(
            weight_bytes=graph.weight_bytes,
            embedding_bytes=tokens * (graph.row_bytes + graph.position_bytes),
            cache_read_bytes=tokens * self.cache_token_bytes,
            cache_write_bytes=tokens * self.cache_token_bytes,
            int8_operations=2 * (tokens * graph.int8_weights + graph.int8_last),
            fp32_operations=2 * (tokens * graph.fp32_weights + graph.fp32_last + pairs * self._attention),
        )


def _add_up(bundle: Bundle, graph: str, sizes: dict[str, int]) -> _Graph:
    level = bundle.manifest.recipe.get("quantization", {}).get("accuracy_level")
    logits = next(spec for spec in bundle.manifest.graphs[graph].outputs if spec.name == "logits")
    found = readings(bundle, graph)
    multiplied = [weights for reading in found if (weights := _matrix_weights(reading, sizes))]
    whole: dict[int, int] = {}  # by offset: what two nodes read is fetched once
    rows: dict[int, int] = {}
    positions: dict[int, int] = {}
    counts = {(kind, last): 0 for kind in ("int8", "fp32") for last in (False, True)}
    left = len(multiplied)
    for reading in found:
        for tensor in reading.tensors:
            if _is_rotary(tensor):
                positions[tensor.offset] = _row_bytes(tensor)
            elif reading.gathers:
                rows[tensor.offset] = _row_bytes(tensor)
            else:
                whole[tensor.offset] = tensor.nbytes
        if weights := _matrix_weights(reading, sizes):
            integer = level == _INTEGER_LEVEL and any(t.dtype in ("uint8", "int8") for t in reading.tensors)
            left -= 1
            head = logits.dims[1] == 1 and not left  # the last matrix of a graph is its head
            counts["int8" if integer else "fp32", head] += weights
    return _Graph(
        weight_bytes=sum(whole.values()),
        row_bytes=sum(rows.values()),
        position_bytes=sum(positions.values()),
        int8_weights=counts["int8", False],
        fp32_weights=counts["fp32", False],
        int8_last=counts["int8", True],
        fp32_last=counts["fp32", True],
    )


def _matrix_weights(reading: Reading, sizes: dict[str, int]) -> int:
    """Elements of the checkpoint's matrices that a node multiplies with; 0 for an embedding or a norm.

    They are told by the tensors' sources, so it does not matter how a matrix is packed, padded or joined with others.
    """
    if reading.gathers:
        return 0
    names = {name for tensor in reading.tensors for name in tensor.source.split("+")}
    return sum(sizes.get(".".join(name.split(".")[-2:]), 0) for name in names)


def _is_rotary(tensor: TensorRecord) -> bool:
    return tensor.name in ("cos", "sin")


def _row_bytes(tensor: TensorRecord) -> int:
    return tensor.nbytes // math.prod(tensor.shape[:1])
