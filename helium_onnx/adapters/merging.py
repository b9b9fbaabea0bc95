"""A checkpoint with adapters merged into it, row by row as it is read: no weight is ever written or held whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from helium_onnx.adapters.base import Base
from helium_onnx.adapters.given import GivenAdapters, given_adapters
from helium_onnx.adapters.peft_folder import LowRank, PeftFolder
from helium_onnx.checkpoint import Checkpoint
from helium_onnx.config import HeliumConfig
from helium_onnx.errors import AdapterError
from helium_onnx.safetensors_file import TensorInfo
from helium_onnx.tasks import Task

#: What peft calls the tasks other than text generation.
_TASKS: dict[str | None, Task] = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "FEATURE_EXTRACTION": "feature-extraction",
}
#: Bytes of an update that are made at once, beside the rows that it is added to.
_UPDATE_BYTES = 4 << 20


class MergedCheckpoint(Checkpoint):
    """``base`` plus, for each adapter, ``scale * B @ A`` on the weights that it adapts, in float32 and in order.

    Weights that an adapter holds whole (``modules_to_save``) take the place of the base's, or come in addition.
    All that reads a checkpoint reads the merged weights: quantizers, calibration, evaluation.
    """

    def __init__(self, base: Checkpoint, adapters: Sequence[PeftFolder]) -> None:
        """Raises AdapterError where two adapters hold the same weight whole."""
        tensors: dict[str, TensorInfo] = dict(base.tensors)
        owners: dict[str, PeftFolder] = {}
        for adapter in adapters:
            for name, info in adapter.replaced.items():
                if name in owners:
                    raise AdapterError(
                        f"two adapters hold {name} whole",
                        found=f"{owners[name].folder} and {adapter.folder}",
                        expected="one of them",
                        remedy="merge one of the two, or export a bundle for each",
                    )
                owners[name], tensors[name] = adapter, info
        files = [*base.source_files(), *(file for adapter in adapters for file in adapter.source_files())]
        super().__init__(base.folder, base.config, tensors, files)
        self.adapters = tuple(adapters)
        self._latest: tuple[str, list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]] = ("", [])

    def as_task(self, task: Task | None, labels: HeliumConfig | None = None) -> Self:
        """See ``Checkpoint.as_task``. Without a ``task``, that of an adapter that was trained for another than text
        generation comes before the base's. Raises AdapterError, too, where two adapters were trained for two of these.
        """
        trained = {_TASKS[one.config.task_type]: one.folder for one in self.adapters if one.config.task_type in _TASKS}
        if task is None and len(trained) > 1:
            raise AdapterError(
                "the adapters were trained for different tasks",
                found=", ".join(f"{folder}: {name}" for name, folder in trained.items()),
                expected="adapters for one task",
                remedy="export a bundle for each, or say what to export: --task",
            )
        return super().as_task(task or next(iter(trained), None), labels)

    @property
    def changed(self) -> tuple[str, ...]:
        """The tensors that are not the base's."""
        return tuple(dict.fromkeys(name for one in self.adapters for name in (*one.updates, *one.replaced)))

    def source_name(self, path: Path) -> str:
        """An adapter's files stand under ``adapters/``, by their place in the order: ``adapters/1/...``."""
        for number, adapter in enumerate(self.adapters, start=1):
            if path in adapter.source_files():
                return f"adapters/{number}/{path.name}"
        return super().source_name(path)

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """See ``Checkpoint.read``."""
        return self._add(name, 0, super().read(name))

    def read_rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        """See ``Checkpoint.read_rows``."""
        return self._add(name, start, super().read_rows(name, start, stop))

    def iter_rows(self, name: str, max_bytes: int = 16 << 20) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """See ``Checkpoint.iter_rows``, which ``gather_rows`` reads by."""
        for first, rows in super().iter_rows(name, max_bytes):
            yield first, self._add(name, first, rows)

    def _add(self, name: str, first: int, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """``rows``, which begin at row ``first`` of the tensor, with the updates added in place."""
        factors = self._factors(name)
        if not factors:
            return rows
        step = max(1, _UPDATE_BYTES // (4 * rows.shape[1]))
        for left, right in factors:
            for start in range(0, len(rows), step):
                piece = rows[start : start + step]
                piece += left[first + start : first + start + len(piece)] @ right
        return rows

    def _factors(self, name: str) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
        """The tensor's updates; those of one tensor are kept, since its rows are read one piece after the other."""
        updates: list[LowRank] = [one.updates[name] for one in self.adapters if name in one.updates]
        if not updates:
            return []
        if self._latest[0] != name:
            self._latest = (name, [update.factors() for update in updates])
        return self._latest[1]


def merged_with(base: Checkpoint, adapter: GivenAdapters) -> Checkpoint:
    """``merged``, of adapters as a caller may give them."""
    return merged(base, [folder for _, folder in given_adapters(adapter)])


def merged(base: Checkpoint, folders: Sequence[Path]) -> Checkpoint:
    """``base`` with the adapters in ``folders`` merged into it, in order; ``base`` itself where there are none.

    Raises:
        AdapterError, WeightsError: see ``PeftFolder.open``; two adapters that hold the same weight whole.
    """
    if not folders:
        return base
    return MergedCheckpoint(base, [PeftFolder.open(folder, Base.of(base)) for folder in folders])
