"""The adapters of a bundle whose graphs take them: those in its folder by name, others by their files."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from helium_onnx.adapters import onnx_adapter
from helium_onnx.adapters.base import Base
from helium_onnx.adapters.config import CONFIG_FILE
from helium_onnx.adapters.parameters import LinearModule, linear_modules
from helium_onnx.adapters.peft_folder import PeftFolder
from helium_onnx.bundle import Bundle, sha256
from helium_onnx.config import HeliumConfig
from helium_onnx.config_fields import short
from helium_onnx.errors import AdapterError, UsageError
from helium_onnx.manifest import adapter_files
from helium_onnx.runtimes.checked_files import FileStamp


@dataclasses.dataclass(frozen=True)
class LoadedAdapter:
    """What a session is given. ``identity`` tells its keys and values from those of other adapters."""

    identity: str
    matrices: Mapping[str, NDArray[np.float32]]


class BundleAdapters:
    """Finds adapters for one bundle, and keeps those that were asked for."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises AdapterError where the bundle's graphs take no adapters."""
        self.bundle = bundle
        if not bundle.manifest.adapters:
            raise AdapterError(
                f"the graphs of {bundle.path} take no adapters",
                expected="a bundle that was exported with --adapter-mode runtime",
                remedy="export it so; or merge the adapter at export: --adapter alone",
            )
        self.base = onnx_adapter.base_number(bundle.manifest.source)
        self._files = {name: bundle.path / file for name, file in adapter_files(bundle.manifest).items()}
        config = HeliumConfig.from_dict(bundle.model_config, source=f"{bundle.path}/helium.json")
        self._modules: tuple[LinearModule, ...] = tuple(linear_modules(config))
        self._loaded: dict[tuple[object, ...], LoadedAdapter] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters in the bundle's folder."""
        return tuple(sorted(self._files))

    def get(self, adapter: str | os.PathLike[str]) -> LoadedAdapter:
        """An adapter of the bundle by name, or the one in an ``.onnx_adapter`` file or a PEFT folder.

        Raises:
            UsageError: neither a name of the bundle's nor a path that is there.
            AdapterError, WeightsError: it cannot be read, or is another model's.
        """
        path = self._files.get(adapter) if isinstance(adapter, str) else None
        path = Path(adapter).expanduser() if path is None else path
        if not path.exists():
            raise UsageError(
                f"there is no adapter {short(os.fspath(adapter))}",
                found=f"the bundle's: {', '.join(self.names)}" if self._files else "a bundle without adapters in it",
                expected=f"a name of the bundle's, an {onnx_adapter.SUFFIX} file, or a folder of peft's",
            )
        files = [path] if not path.is_dir() else [path / CONFIG_FILE, *sorted(path.glob("*.safetensors"))]
        key = (path, *(FileStamp.of(file) for file in files if file.is_file()))
        if key not in self._loaded:
            self._loaded[key] = self._load(path, files)
        return self._loaded[key]

    def matrices(self, folder: Path) -> onnx_adapter.Matrices:
        """Those of a PEFT folder that adapts the bundle's base model. Raises AdapterError or WeightsError."""
        return onnx_adapter.runtime_matrices(PeftFolder.open(folder, Base.of_bundle(self.bundle)), self._modules)

    def _load(self, path: Path, files: list[Path]) -> LoadedAdapter:
        matrices = self.matrices(path) if path.is_dir() else onnx_adapter.read(path, self._modules, self.base)
        digest = hashlib.sha256("\n".join(sha256(file) for file in files).encode())
        return LoadedAdapter(digest.hexdigest(), matrices)
