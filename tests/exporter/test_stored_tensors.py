"""Transposed: the matrix as MatMul takes it, in either type, whole or a strip at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import tiny

from helium_onnx.checkpoint import Checkpoint
from helium_onnx.errors import ExportError
from helium_onnx.exporter import stored_tensors
from helium_onnx.exporter.quantization import make_quantizer
from helium_onnx.exporter.stored_tensors import StoredTensor, Transposed
from helium_onnx.recipe import load_recipe

NAME = "lm_head.weight"


def written(folder: Path, dtype: ir.DataType) -> tuple[np.ndarray, np.ndarray]:
    """What a Transposed writes, and the checkpoint's matrix."""
    source = Checkpoint.open(folder)
    matrix = source.read(NAME)
    transform = Transposed(NAME, NAME, (matrix.shape[0], matrix.shape[1]), dtype)
    data = bytearray(transform.tensors()[0].nbytes)

    def sink(_tensor: StoredTensor, offset: int, array: np.ndarray) -> None:
        block = np.ascontiguousarray(array).tobytes()
        data[offset : offset + len(block)] = block

    count = sum(transform.write(source, make_quantizer(source, load_recipe("qnn-fp16"), None), sink))
    assert count == len(data)
    return np.frombuffer(data, dtype.numpy()).reshape(matrix.shape[::-1]), matrix


@pytest.mark.parametrize("strips", [False, True])
@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16])
def test_either_type(dtype: ir.DataType, strips: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if strips:  # as of a head too large to turn at once
        monkeypatch.setattr(stored_tensors, "_TRANSPOSED_BYTES", 7 * 64 * 4)
    found, matrix = written(tiny.write_checkpoint(tmp_path / "c"), dtype)
    assert np.array_equal(found, matrix.T.astype(dtype.numpy()))


def test_beyond_float16(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "c", std=1e5)
    with pytest.raises(ExportError, match="do not fit float16"):
        written(folder, ir.DataType.FLOAT16)
