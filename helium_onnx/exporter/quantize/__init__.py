"""Quantization methods, one a file. A method turns rows of a matrix into the layout of MatMulNBits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from helium_onnx.exporter.quantize.packing import QuantizedRows, dequantize
from helium_onnx.recipe import MatrixSettings, Method

if TYPE_CHECKING:
    from helium_onnx.checkpoint import Checkpoint

__all__ = ["DataFree", "QuantizedRows", "Quantizer", "RowFunction", "dequantize", "row_function"]

#: What a data-free method reads at once.
_PIECE_BYTES = 8 << 20


class RowFunction(Protocol):
    """A method that looks at one row at a time: ``values`` float32 ``[rows, columns]``.

    ``importance`` float32 ``[columns]``, not negative, is the mean square of what each column is multiplied with;
    None where it is not known. Methods that have no use for it ignore it.
    """

    def __call__(
        self, values: NDArray[np.float32], settings: MatrixSettings, importance: NDArray[np.float32] | None = None
    ) -> QuantizedRows: ...


class Quantizer(Protocol):
    """Quantizes the matrices of one checkpoint, each asked for once, in the model's order."""

    def listen(self, report: Callable[[str], None]) -> None:
        """Call ``report`` with what is being worked on, where a call of ``rows`` may take long."""
        ...

    def rows(self, name: str, source: str, settings: MatrixSettings) -> Iterator[tuple[int, QuantizedRows]]:
        """The checkpoint's tensor ``source``, stored as ``name``, in pieces: (first row, the rows quantized).

        The two names differ for a head that is tied to the embedding.
        """
        ...


class DataFree:
    """A quantizer that knows the weights alone; it holds a piece of one matrix."""

    def __init__(self, checkpoint: Checkpoint, method: Method) -> None:
        self._checkpoint, self._function = checkpoint, row_function(method)

    def listen(self, report: Callable[[str], None]) -> None:
        """Nothing takes long: a piece is a moment's work."""

    def rows(
        self,
        name: str,  # noqa: ARG002  a quantizer's interface
        source: str,
        settings: MatrixSettings,
    ) -> Iterator[tuple[int, QuantizedRows]]:
        """See :meth:`Quantizer.rows`."""
        for row, values in self._checkpoint.iter_rows(source, max_bytes=_PIECE_BYTES):
            yield row, self._function(values, settings)


def row_function(method: Method) -> RowFunction:
    """The function of a recipe's ``[quantization] method``; GPTQ's is the search that it chooses scales with."""
    if method == "hqq":
        from helium_onnx.exporter.quantize import hqq

        return hqq.quantize_rows
    if method in ("k-quant", "gptq"):
        from helium_onnx.exporter.quantize import k_quant

        return k_quant.quantize_rows
    from helium_onnx.exporter.quantize import round_to_nearest

    return round_to_nearest.quantize_rows
