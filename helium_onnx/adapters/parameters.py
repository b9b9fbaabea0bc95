"""The names and shapes under which graphs take an adapter's matrices, and an adapter file holds them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from helium_onnx.checkpoint import expected_tensors
from helium_onnx.config import HeliumConfig


@dataclass(frozen=True)
class LinearModule:
    """A linear layer that takes an adapter: ``name`` is the checkpoint's, without ``.weight``, which is ``[rows,
    columns]``.
    """

    name: str
    rows: int
    columns: int

    @property
    def a(self) -> str:
        """The graphs' input for the first matrix, float32 ``[columns, rank]``: that of peft, transposed."""
        return f"{self.name}.lora_A.weight"

    @property
    def b(self) -> str:
        """That for the second, float32 ``[rank, rows]``: that of peft, transposed and times the adapter's scale."""
        return f"{self.name}.lora_B.weight"

    def parameters(self) -> tuple[tuple[str, tuple[int | str, int | str]], ...]:
        """Both inputs' names and dims; the rank is a symbol of the module's own."""
        rank = f"{self.name}.rank"
        return (self.a, (self.columns, rank)), (self.b, (rank, self.rows))


def linear_modules(config: HeliumConfig) -> Iterator[LinearModule]:
    """The linear modules of all layers: what takes adapters at run time. Embedding and head do not."""
    for name, shape in expected_tensors(config).items():
        if name.startswith("model.layers.") and len(shape) == 2:
            yield LinearModule(name.removesuffix(".weight"), *shape)
