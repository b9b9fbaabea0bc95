"""The weights file: what goes into it, where, and how it is streamed there.

Passes declare what the graph needs (``WeightPlan.add``); nothing is read until ``write``, which holds a chunk of one
checkpoint tensor at a time.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from helium_onnx.contract import WEIGHTS_FILE
from helium_onnx.exporter.quantize import Quantizer
from helium_onnx.exporter.stored_tensors import StoredTensor, Transform
from helium_onnx.manifest import TensorRecord
from helium_onnx.progress import ProgressCallback, ProgressEvent, silent

if TYPE_CHECKING:
    from helium_onnx.checkpoint import Checkpoint

#: Tensors start at multiples of a page, so that every runtime can map them in place.
ALIGNMENT = 4096


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
