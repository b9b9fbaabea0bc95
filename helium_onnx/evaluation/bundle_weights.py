"""A bundle's stored matrices read back as float32, under the checkpoint's names: the weights that its kernels mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray

from helium_onnx.bundle import Bundle
from helium_onnx.checkpoint import EMBEDDING, HEAD, expected_tensors
from helium_onnx.config import HeliumConfig
from helium_onnx.contract import WEIGHTS_FILE
from helium_onnx.errors import BundleError
from helium_onnx.exporter.quantize.packing import QuantizedRows, dequantize
from helium_onnx.manifest import TensorRecord
from helium_onnx.recipe import Bits, BlockSize, MatrixSettings

#: Endings that an exporter gives the tensors it makes of a matrix.
_PARTS = (".quantized", ".scales", ".zero_points", ".transposed")
_QUANTIZED_OPERATORS = ("MatMulNBits", "GatherBlockQuantized")
#: Rows are turned back in pieces of so many weights, beside the whole matrix in float32.
_CHUNK = 16 << 20


@dataclass(frozen=True)
class _Layout:
    """The attributes of the node that reads a quantized matrix."""

    bits: Bits
    block_size: BlockSize


class BundleWeights:
    """Reads matrices and norms of ``bundle``; a mapped file, nothing is kept in memory.

    Bits and block size are those of the graph's nodes, so that a matrix may differ from its recipe's rule.

    Raises:
        BundleError: the graph cannot be read.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        config = HeliumConfig.from_dict(bundle.model_config, source=f"{bundle.path}/helium.json")
        self._shapes = expected_tensors(config)
        self._shapes.setdefault(HEAD, self._shapes[EMBEDDING])  # tied
        self._records = {record.name: record for record in bundle.manifest.tensors}
        self._holders = {_base(record.name) for record in bundle.manifest.tensors}
        self._bytes = np.memmap(bundle.path / WEIGHTS_FILE, np.uint8, "r")
        # Of a task without generation there is one graph.
        self._graph = bundle.graph_path("decode" if "decode" in bundle.manifest.graphs else "model")
        self._layouts = _layouts(self._graph)

    def read(self, name: str) -> NDArray[np.float32]:
        """The checkpoint's tensor ``name`` as the bundle stores it: float32, in the checkpoint's shape.

        Raises:
            BundleError: the bundle has no tensor that was made from it.
        """
        holder, first = self._find(name)
        shape = self._shapes[name]
        if f"{holder}.quantized" in self._records:
            return self._dequantized(holder, first, shape[0], shape[1])
        if (turned := self._records.get(f"{holder}.transposed")) is not None:
            return self._floats(turned)[:, first : first + shape[0]].T.astype(np.float32, order="C", copy=True)
        values = self._floats(self._records[holder])
        return values[first : first + shape[0]].astype(np.float32, copy=True)

    def _find(self, name: str) -> tuple[str, int]:
        """The stored matrix that holds ``name``, and its first row in it."""
        if name in self._holders:
            return name, 0
        for record in self._records.values():
            pieces = record.source.split("+")
            if name in pieces and len(pieces) > 1:
                return _base(record.name), sum(self._shapes[piece][0] for piece in pieces[: pieces.index(name)])
        if name == HEAD:  # tied, and stored once
            return EMBEDDING, 0
        raise BundleError(
            f"{self.bundle.path} stores no {name}",
            found=f"{len(self._records)} others",
            remedy="export the checkpoint anew",
        )

    def _dequantized(self, holder: str, first: int, rows: int, columns: int) -> NDArray[np.float32]:
        data, scales = self._records[f"{holder}.quantized"], self._records[f"{holder}.scales"]
        zero_points = self._records.get(f"{holder}.zero_points")
        layout = self._layouts.get(data.name)
        if layout is None:
            raise BundleError(
                f"{self.bundle.path}: no node of {self._graph.name} reads {data.name}",
                expected=f"a node {' or '.join(_QUANTIZED_OPERATORS)}",
                remedy="export the checkpoint anew",
            )
        blocks = -(-columns // layout.block_size)
        whole = blocks * layout.block_size * layout.bits // 8
        settings = MatrixSettings(layout.bits, layout.block_size, zero_points is None)
        out = np.empty((rows, columns), np.float32)
        step = max(1, _CHUNK // columns)
        for start in range(0, rows, step):
            part = slice(first + start, first + min(rows, start + step))
            codes = self._raw(data)[part]
            if codes.shape[1] < whole:  # rows that are gathered are not padded to whole blocks
                codes = np.pad(codes, ((0, 0), (0, whole - codes.shape[1])))
            packed = QuantizedRows(
                data=np.array(codes).reshape(len(codes), blocks, -1),
                scales=self._floats(scales).reshape(-1, blocks)[part].astype(np.float32, copy=True),
                zero_points=None if zero_points is None else np.array(self._raw(zero_points)[part]),
            )
            out[start : start + len(codes)] = dequantize(packed, settings, columns)
        return out

    def _raw(self, record: TensorRecord) -> NDArray[np.uint8]:
        """The bytes of a tensor, ``[rows, bytes of a row]``."""
        return self._bytes[record.offset : record.offset + record.nbytes].reshape(record.shape[0], -1)

    def _floats(self, record: TensorRecord) -> NDArray[Any]:
        """A tensor of floats in its shape; bfloat16, which numpy lacks, as float32."""
        flat = self._bytes[record.offset : record.offset + record.nbytes]
        if record.dtype == "bfloat16":
            wide = flat.view(np.uint16).astype(np.uint32) << 16
            return wide.view(np.float32).reshape(record.shape)
        return flat.view(np.dtype(record.dtype)).reshape(record.shape)


def _base(name: str) -> str:
    return next((name.removesuffix(part) for part in _PARTS if name.endswith(part)), name)


def _layouts(path: Path) -> dict[str, _Layout]:
    """Bits and block size of each quantized matrix, by the name of its codes."""
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf raises its own
        raise BundleError(f"{path} cannot be read", found=error, remedy="export the checkpoint anew") from error
    found = {}
    for node in graph.node:
        if node.op_type in _QUANTIZED_OPERATORS:
            attributes = {attribute.name: attribute.i for attribute in node.attribute}
            data = node.input[0 if node.op_type == "GatherBlockQuantized" else 1]
            # The schemas' defaults (ONNX Runtime 1.31.1).
            bits, block_size = attributes.get("bits", 4), attributes.get("block_size", 128)
            # Others no graph has that ONNX Runtime loads.
            found[data] = _Layout(cast(Bits, bits), cast(BlockSize, block_size))
    return found
