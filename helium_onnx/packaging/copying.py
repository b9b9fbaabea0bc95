"""Copy files of a bundle into a package, so that progress is seen and Ctrl-C is answered in a file of gigabytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from helium_onnx.bundle import Bundle
from helium_onnx.contract import WEIGHTS_FILE
from helium_onnx.packaging.target import Contents
from helium_onnx.progress import ProgressCallback, ProgressEvent

_CHUNK = 4 << 20
#: Tokenizer, configs, one graph and the manifest, with room to spare.
_SMALL_FILES_BYTES = 8 << 20
#: Beside the graphs. genai_config.json is not among them: it is for a client that no package is for.
_SMALL = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def small_files(bundle: Bundle) -> list[str]:
    """The tokenizer, the configs and the licence of ``bundle``."""
    return [file.path for file in bundle.manifest.files if file.path in _SMALL or file.path.startswith("LICENSE")]


def weights_bytes(bundle: Bundle) -> int:
    """The size of the bundle's weights file."""
    return next(file.size for file in bundle.manifest.files if file.path == WEIGHTS_FILE)


def needed_for_one_graph(bundle: Bundle) -> int:
    """Bytes that ``copy_one_graph`` writes, at most."""
    return weights_bytes(bundle) + _SMALL_FILES_BYTES


def copy_one_graph(
    bundle: Bundle, name: str, folder: Path, details: Mapping[str, Any], progress: ProgressCallback
) -> Contents:
    """Copy graph ``name``, the weights and the small files into ``folder``: a package whose clients run no other."""
    graph = bundle.manifest.graphs[name]
    copy_files(bundle, [graph.file, *small_files(bundle), WEIGHTS_FILE], folder, progress)
    return Contents({name: graph}, bundle.manifest.tensors, dict(details))


def copy_files(bundle: Bundle, names: Iterable[str], folder: Path, progress: ProgressCallback) -> None:
    """Copy the files ``names`` of ``bundle`` to the same places in ``folder``. Raises OSError."""
    sizes = {file.path: file.size for file in bundle.manifest.files}
    chosen = list(names)
    total, done = sum(sizes[name] for name in chosen), 0
    for name in chosen:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with (bundle.path / name).open("rb") as source, target.open("xb") as copy:
            while chunk := source.read(_CHUNK):
                copy.write(chunk)
                done += len(chunk)
                progress(ProgressEvent("copy", name, done, total))
