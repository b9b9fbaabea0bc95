"""What a weights file is made of: each class makes stored tensors from one tensor of the checkpoint, or from several.

Nothing is read until ``write``, which holds a chunk of one checkpoint tensor at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from helium_onnx.config import HeliumConfig
from helium_onnx.errors import ExportError
from helium_onnx.exporter.quantize import Quantizer
from helium_onnx.recipe import MatrixSettings

if TYPE_CHECKING:
    from helium_onnx.checkpoint import Checkpoint
    from helium_onnx.exporter.key_value_scales import LayerScales

#: What a transposition holds at once, twice: every matrix of a 2 B model but its head fits.
_TRANSPOSED_BYTES = 80 << 20
#: What a recipe calls the types that tensors are stored in.
DATA_TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


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
    """The checkpoint's tensor as it is, in float32 or rounded to the nearest float16 or bfloat16.

    ``source`` may be several joined by ``+``, whose rows follow each other; ``stored_as`` is the name of the whole
    where it is not the source's.
    """

    source: str
    shape: tuple[int, ...]
    dtype: ir.DataType = ir.DataType.FLOAT
    stored_as: str | None = None

    def tensors(self) -> tuple[StoredTensor, ...]:
        return (StoredTensor(self.stored_as or self.source, self.dtype, self.shape),)

    def write(self, checkpoint: Checkpoint, quantizer: Quantizer, sink: Sink) -> Iterator[int]:  # noqa: ARG002
        (tensor,) = self.tensors()
        if len(self.shape) == 1:
            sink(tensor, 0, rounded(self.source, checkpoint.read(self.source), self.dtype))
            yield tensor.nbytes
            return
        written = 0
        for source in self.source.split("+"):
            for _, values in checkpoint.iter_rows(source):
                stored = rounded(source, values, self.dtype)
                sink(tensor, written, stored)
                written += stored.nbytes
                yield stored.nbytes
        assert written == tensor.nbytes


@dataclass(frozen=True)
class Transposed:
    """A matrix ``[N, K]`` of a Linear, stored ``[K, N]`` as MatMul takes it, in float32 or rounded to ``dtype``.

    ``source`` is the checkpoint's tensor: ``name`` itself, or the embedding where the head is tied to it.
    """

    source: str
    name: str
    shape: tuple[int, int]
    dtype: ir.DataType = ir.DataType.FLOAT

    def tensors(self) -> tuple[StoredTensor, ...]:
        return (StoredTensor(f"{self.name}.transposed", self.dtype, (self.shape[1], self.shape[0])),)

    def write(self, checkpoint: Checkpoint, quantizer: Quantizer, sink: Sink) -> Iterator[int]:  # noqa: ARG002
        (tensor,) = self.tensors()
        rows = self.shape[0]
        for row, values in checkpoint.iter_rows(self.source, max_bytes=_TRANSPOSED_BYTES):
            turned = np.ascontiguousarray(rounded(self.source, values, self.dtype).T)
            if len(values) == rows:
                sink(tensor, 0, turned)
            else:  # a large head: a strip of columns at a time
                for column, strip in enumerate(turned):
                    sink(tensor, turned.itemsize * (column * rows + row), strip)
            yield turned.nbytes


@dataclass(frozen=True)
class Quantized:
    """A matrix in the layout of MatMulNBits, or (``gathered``) of GatherBlockQuantized.

    Data: uint8 ``[N, blocks, block_size * bits / 8]``, low bits first; gathered: ``[N, K * bits / 8]``. Scales:
    float32, float16 or bfloat16 ``[N, blocks]``. Zero points, unless symmetric: uint8 ``[N, ceil(blocks * bits / 8)]``.
    Source: ONNX Runtime 1.31.1, the operators' schemas. ``source`` is one tensor of the checkpoint, or several joined
    by ``+``, whose rows follow each other.
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
        scales = DATA_TYPES[self.settings.scales]
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
    """The cosines and sines of all positions, in float32 or the half-precision type of attention's kernel."""

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


def rounded(name: str, values: NDArray[np.float32], dtype: ir.DataType) -> NDArray[Any]:
    """``values`` of the checkpoint's tensor ``name`` in ``dtype``: the nearest number, of two the even one.

    Raises:
        ExportError: one is beyond the range of ``dtype``.
    """
    if dtype == ir.DataType.FLOAT:
        return values
    largest = torch.finfo({ir.DataType.FLOAT16: torch.float16, ir.DataType.BFLOAT16: torch.bfloat16}[dtype]).max
    with np.errstate(over="ignore"):
        stored: NDArray[Any] = values.astype(dtype.numpy())
        most = max(values.max(initial=0), -values.min(initial=0))  # rounding keeps the order: it tells of all
        fits = bool(np.isfinite(np.float32(most).astype(dtype.numpy())))
    if not fits:
        raise ExportError(
            f"the checkpoint's weights do not fit {dtype.numpy().name}",
            found=f"a magnitude of {most:g} in {name}",
            expected=f"{largest:g} at most",
            remedy="choose a recipe of more range: cuda-bf16 for a GPU, cpu-int4 or cpu-fp32 for a CPU",
        )
    return stored
