"""The weights file: what goes into it, where, and how it is streamed there.

Passes declare what the graph needs (``WeightPlan.add``); nothing is read until ``write``, which holds a chunk of one
checkpoint tensor at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from helium_onnx.config import HeliumConfig
from helium_onnx.contract import WEIGHTS_FILE
from helium_onnx.exporter.quantize import Quantizer
from helium_onnx.manifest import TensorRecord
from helium_onnx.progress import ProgressCallback, ProgressEvent, silent
from helium_onnx.recipe import MatrixSettings

if TYPE_CHECKING:
    from helium_onnx.checkpoint import Checkpoint
    from helium_onnx.exporter.key_value_scales import LayerScales

#: Tensors start at multiples of a page, so that every runtime can map them in place.
ALIGNMENT = 4096
#: What a transposition holds at once, twice: every matrix of a 2 B model but its head fits.
_TRANSPOSED_BYTES = 80 << 20


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the weights file."""

    name: str
    dtype: ir.DataType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * int(self.dtype.itemsize)


class Sink(Protocol):
    """Takes the bytes of stored tensors, in any order."""

    def __call__(self, tensor: StoredTensor, offset: int, array: NDArray[np.generic]) -> None: ...


class Transform(Protocol):
    """Makes stored tensors from one checkpoint tensor, ``source``."""

    @property
    def source(self) -> str: ...
    def tensors(self) -> tuple[StoredTensor, ...]: ...
    def write(self, checkpoint: Checkpoint, quantizer: Quantizer, sink: Sink) -> Iterator[int]:
        """Write all tensors; yield the bytes written, chunk by chunk."""
        ...


@dataclass(frozen=True)
class Keep:
    """The checkpoint's tensor as it is, in float32."""

    source: str
    shape: tuple[int, ...]

    def tensors(self) -> tuple[StoredTensor, ...]:
        return (StoredTensor(self.source, ir.DataType.FLOAT, self.shape),)

    def write(self, checkpoint: Checkpoint, quantizer: Quantizer, sink: Sink) -> Iterator[int]:  # noqa: ARG002
        (tensor,) = self.tensors()
        if len(self.shape) == 1:
            sink(tensor, 0, checkpoint.read(self.source))
            yield tensor.nbytes
            return
        for row, values in checkpoint.iter_rows(self.source):
            sink(tensor, row * self.shape[1] * 4, values)
            yield values.nbytes


@dataclass(frozen=True)
class Transposed:
    """A matrix ``[N, K]`` of a Linear, stored ``[K, N]`` as MatMul takes it, in float32.

    ``source`` is the checkpoint's tensor: ``name`` itself, or the embedding where the head is tied to it.
    """

    source: str
    name: str
    shape: tuple[int, int]

    def tensors(self) -> tuple[StoredTensor, ...]:
        return (StoredTensor(f"{self.name}.transposed", ir.DataType.FLOAT, (self.shape[1], self.shape[0])),)

    def write(self, checkpoint: Checkpoint, quantizer: Quantizer, sink: Sink) -> Iterator[int]:  # noqa: ARG002
        (tensor,) = self.tensors()
        rows = self.shape[0]
        for row, values in checkpoint.iter_rows(self.source, max_bytes=_TRANSPOSED_BYTES):
            turned = np.ascontiguousarray(values.T)
            if len(values) == rows:
                sink(tensor, 0, turned)
            else:  # a large head: a strip of columns at a time
                for column, strip in enumerate(turned):
                    sink(tensor, 4 * (column * rows + row), strip)
            yield values.nbytes


@dataclass(frozen=True)
class Quantized:
    """A matrix in the layout of MatMulNBits, or (``gathered``) of GatherBlockQuantized.

    Data: uint8 ``[N, blocks, block_size * bits / 8]``, low bits first; gathered: ``[N, K * bits / 8]``. Scales:
    float32 or float16 ``[N, blocks]``. Zero points, unless symmetric: uint8 ``[N, ceil(blocks * bits / 8)]``. Source:
    ONNX Runtime 1.31.1, the operators' schemas. ``source`` is one tensor of the checkpoint, or several joined by ``+``,
    whose rows follow each other.
    """

    source: str
    name: str
    shape: tuple[int, int]
    settings: MatrixSettings
    gathered: bool = False

    @property
    def blocks(self) -> int:
        return -(-self.shape[1] // self.settings.block_size)

    def tensors(self) -> tuple[StoredTensor, ...]:
        (rows, columns), bits, u8 = self.shape, self.settings.bits, ir.DataType.UINT8
        scales = ir.DataType.FLOAT16 if self.settings.scales == "float16" else ir.DataType.FLOAT
        data = (
            (rows, columns * bits // 8) if self.gathered else (rows, self.blocks, self.settings.block_size * bits // 8)
        )
        stored = [
            StoredTensor(f"{self.name}.quantized", u8, data),
            StoredTensor(f"{self.name}.scales", scales, (rows, self.blocks)),
        ]
        if not self.settings.symmetric:
            stored.append(StoredTensor(f"{self.name}.zero_points", u8, (rows, -(-self.blocks * bits // 8))))
        return tuple(stored)

    def write(self, checkpoint: Checkpoint, quantizer: Quantizer, sink: Sink) -> Iterator[int]:
        tensors = self.tensors()
        row_bytes = [t.nbytes // self.shape[0] for t in tensors]
        first = 0
        for source in self.source.split("+"):
            for row, parts in quantizer.rows(self.name, source, self.settings):
                rows = len(parts.scales)
                scales = parts.scales.astype(tensors[1].dtype.numpy(), copy=False)  # which loses nothing
                arrays: tuple[NDArray[Any] | None, ...] = (parts.data, scales, parts.zero_points)
                for tensor, array, size in zip(tensors, arrays, row_bytes, strict=False):
                    assert array is not None
                    block = array.reshape(rows, -1)
                    if block.nbytes != size * rows:
                        block = np.ascontiguousarray(block[:, :size])  # gathered rows are not padded to whole blocks
                    sink(tensor, (first + row) * size, block)
                yield sum(row_bytes) * rows
            first += checkpoint.tensors[source].shape[0]
        assert first == self.shape[0]


@dataclass(frozen=True)
class RopeTables:
    """The cosines and sines of all positions, in float32 or (beside a float16 key/value cache) float16."""

    config: HeliumConfig
    dtype: ir.DataType = ir.DataType.FLOAT
    source: str = "config.json"

    def tensors(self) -> tuple[StoredTensor, ...]:
        shape = (self.config.max_position_embeddings, self.config.head_dim // 2)
        return tuple(StoredTensor(name, self.dtype, shape) for name in ("cos", "sin"))

    def write(self, checkpoint: Checkpoint, quantizer: Quantizer, sink: Sink) -> Iterator[int]:  # noqa: ARG002
        from helium_onnx.modeling import rope_tables

        for tensor, table in zip(self.tensors(), rope_tables(checkpoint.config), strict=True):
            sink(tensor, 0, table.numpy().astype(self.dtype.numpy(), copy=False))
            yield tensor.nbytes


@dataclass(frozen=True)
class KeyValueScales:
    """Scales of one layer's int8 keys and values, float32 ``[1, num_key_value_heads, 1, head_dim]`` each.

    They broadcast to the cache ``[batch, num_key_value_heads, tokens, head_dim]``, as GroupQueryAttention asks.
    """

    layer: int
    scales: LayerScales = field(compare=False)
    source: str = "calibration"

    def tensors(self) -> tuple[StoredTensor, ...]:
        return tuple(
            StoredTensor(
                f"model.layers.{self.layer}.self_attn.{kind}_cache.scales", ir.DataType.FLOAT, (1, heads, 1, size)
            )
            for kind, (heads, size) in (("key", self.scales.key.shape), ("value", self.scales.value.shape))
        )

    def write(self, checkpoint: Checkpoint, quantizer: Quantizer, sink: Sink) -> Iterator[int]:  # noqa: ARG002  known before the writing
        for tensor, scales in zip(self.tensors(), (self.scales.key, self.scales.value), strict=True):
            sink(tensor, 0, scales)
            yield tensor.nbytes


class WeightPlan:
    """All tensors of a weights file, in the order of their declaration, at aligned offsets."""

    def __init__(self) -> None:
        self._transforms: list[Transform] = []
        self._owner: dict[str, Transform] = {}
        self._offsets: dict[str, int] = {}
        self._tensors: dict[str, StoredTensor] = {}
        self.total_bytes = 0

    def add(self, transform: Transform) -> tuple[StoredTensor, ...]:
        """Declare the tensors of ``transform``; once is enough."""
        tensors = transform.tensors()
        if self._owner.get(tensors[0].name) == transform:
            return tensors
        self._transforms.append(transform)
        for tensor in tensors:
            assert tensor.name not in self._owner, f"two ways to make {tensor.name}"
            self._owner[tensor.name] = transform
            self._tensors[tensor.name] = tensor
            self._offsets[tensor.name] = -(-self.total_bytes // ALIGNMENT) * ALIGNMENT
            self.total_bytes = self._offsets[tensor.name] + tensor.nbytes
        return tensors

    def external(self, name: str, shape: tuple[int, ...] | None = None) -> ir.ExternalTensor:
        """The graph's reference to a stored tensor, or to its bytes under another shape of the same size."""
        stored = self._tensors[name]
        dims = stored.shape if shape is None else shape
        assert np.prod(dims, dtype=np.int64) == np.prod(stored.shape, dtype=np.int64)
        location = Path(WEIGHTS_FILE).name
        return ir.ExternalTensor(
            location, self._offsets[name], stored.nbytes, stored.dtype, shape=ir.Shape(dims), name=name
        )

    def has(self, name: str) -> bool:
        return name in self._tensors

    def records(self) -> tuple[TensorRecord, ...]:
        """The manifest's table of the file."""
        return tuple(
            TensorRecord(
                name=name,
                dtype=tensor.dtype.numpy().name,
                shape=tensor.shape,
                offset=self._offsets[name],
                nbytes=tensor.nbytes,
                source=self._owner[name].source,
            )
            for name, tensor in self._tensors.items()
        )

    def write(
        self, path: Path, checkpoint: Checkpoint, quantizer: Quantizer, progress: ProgressCallback = silent
    ) -> None:
        """Stream every tensor from the checkpoint, ``quantizer`` between, to its place in ``path``."""
        written = 0
        total = sum(tensor.nbytes for tensor in self._tensors.values())
        with path.open("wb") as file:
            descriptor = file.fileno()
            # Reserve the room now: a full disk shows before the work, not after it.
            if self.total_bytes:
                os.posix_fallocate(descriptor, 0, self.total_bytes)

            def sink(tensor: StoredTensor, offset: int, array: NDArray[np.generic]) -> None:
                data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
                assert offset + len(data) <= tensor.nbytes, tensor.name
                position = self._offsets[tensor.name] + offset
                while len(data):
                    count = os.pwrite(descriptor, data, position)
                    data, position = data[count:], position + count

            quantizer.listen(lambda item: progress(ProgressEvent("weights", item, written, total)))
            with torch.inference_mode():
                for transform in self._transforms:
                    for count in transform.write(checkpoint, quantizer, sink):
                        written += count
                        progress(ProgressEvent("weights", transform.source, written, total))
