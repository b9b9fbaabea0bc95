"""Adapters that stand beside the weights of a bundle: each a file of ONNX Runtime's, in its folder ``adapters``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helium_onnx import strict_json
from helium_onnx.adapters import onnx_adapter
from helium_onnx.adapters.base import Base
from helium_onnx.adapters.given import check_names
from helium_onnx.adapters.parameters import linear_modules
from helium_onnx.adapters.peft_folder import PeftFolder
from helium_onnx.bundle import sha256
from helium_onnx.checkpoint import Checkpoint
from helium_onnx.errors import UsageError
from helium_onnx.manifest import FileRecord
from helium_onnx.recipe import Recipe

FOLDER = "adapters"


def check_recipe(recipe: Recipe) -> None:
    """Raise UsageError where the recipe's graphs cannot take adapters."""
    if recipe.execution_provider != "cpu" or recipe.precision.compute != "float32":
        raise UsageError(
            f"graphs of recipe {recipe.name} take no adapters at run time",
            found=f"the execution provider {recipe.execution_provider}, computing in {recipe.precision.compute}",
            expected="a recipe for the CPU",
            remedy="choose cpu-int4, cpu-int8 or cpu-fp32; or merge the adapter: leave out --adapter-mode runtime",
        )


class RuntimeAdapters:
    """Adapters to be written into a bundle, each held against the checkpoint."""

    def __init__(self, source: Checkpoint, adapters: Sequence[tuple[str, Path]]) -> None:
        """Raises UsageError for a name that cannot be one, and what ``PeftFolder.open`` raises."""
        check_names(adapters)
        self._source = source
        self._modules = tuple(linear_modules(source.config))
        self._adapters = {name: PeftFolder.open(folder, Base.of(source)) for name, folder in adapters}
        for adapter in self._adapters.values():
            onnx_adapter.check_updates(adapter, self._modules)

    def write(self, folder: Path, source: Sequence[FileRecord]) -> dict[str, Any]:
        """Write the adapters into the bundle at ``folder``; return what its manifest says of them.

        ``source`` are the digests of the checkpoint's files.
        """
        base = onnx_adapter.base_number(source)
        files: dict[str, Any] = {}
        if self._adapters:
            (folder / FOLDER).mkdir()
        for name, adapter in sorted(self._adapters.items()):
            file = f"{FOLDER}/{name}{onnx_adapter.SUFFIX}"
            onnx_adapter.write(folder / file, onnx_adapter.runtime_matrices(adapter, self._modules), base)
            records = [FileRecord(path.name, path.stat().st_size, sha256(path)) for path in adapter.source_files()]
            files[name] = {
                "file": file,
                "ranks": sorted({update.rank for update in adapter.updates.values()}),
                "source": [strict_json.plain(record) for record in records],
            }
        return {"base": base, "files": files}
