"""Copy files of a bundle into a package, so that progress is seen and Ctrl-C is answered in a file of gigabytes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from helium_onnx.bundle import Bundle
from helium_onnx.progress import ProgressCallback, ProgressEvent

_CHUNK = 4 << 20
#: Beside the graphs. genai_config.json is not among them: it names model.onnx, which packages do not have.
_SMALL = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def small_files(bundle: Bundle) -> list[str]:
    """The tokenizer, the configs and the licence of ``bundle``."""
    return [file.path for file in bundle.manifest.files if file.path in _SMALL or file.path.startswith("LICENSE")]


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
