"""helium.json: what a bundle holds, written once at export and checked at every reading.

The file has an object with the fields of `Manifest` and one more, ``manifest_sha256``: the SHA-256 of the canonical
JSON (sorted keys, no spaces) of all other fields. It covers the digests of all files, so it identifies the bundle.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from helium_onnx import strict_json
from helium_onnx.contract import WEIGHTS_FILE, TensorSpec
from helium_onnx.errors import BundleError, ExportError, FormatVersionError, IntegrityError
from helium_onnx.tasks import TASKS, Task

FORMAT_VERSION = 1
MANIFEST_FILE = "helium.json"

_DIGEST = "manifest_sha256"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REMEDY = "copy or download the bundle again, or export it anew"


@dataclass(frozen=True)
class FileRecord:
    """A file: ``path`` relative to its folder with ``/`` between parts, ``size`` in bytes, ``sha256`` in hex.

    Raises:
        ValueError: the path is absolute, leaves the folder or is not in its shortest form; the digest is malformed.
    """

    path: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        _check_path(self.path)
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"{self.sha256!r} is not a SHA-256 digest (64 hexadecimal digits, lower case)")


@dataclass(frozen=True)
class GraphRecord:
    """A graph: its file, what it takes and gives, and how many nodes of each operator it has.

    Operators are named with their domain except ONNX's own: ``com.microsoft.MatMulNBits``, ``MatMul``.
    """

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: dict[str, int]

    def __post_init__(self) -> None:
        _check_path(self.file)


@dataclass(frozen=True)
class TensorRecord:
    """A tensor in the weights file: ``nbytes`` bytes from ``offset``, ``dtype`` in ONNX's lower-case name.

    ``source`` is the checkpoint's tensor that it was made from, as ``model.layers.0.mlp.up_proj.weight``; several,
    packed into one, are joined by ``+``; ``config.json`` where it was computed (the RoPE tables).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    source: str


@dataclass(frozen=True)
class Manifest:
    """All of helium.json but its own digest.

    ``helium_onnx`` is the version that wrote the bundle, ``recipe`` the resolved recipe, ``quantization``
    how its weights were chosen (method, calibration text, allocation), ``model_config`` the checkpoint's config.json,
    ``tensors`` the layout of the weights file, ``source`` the checkpoint's files (names
    relative to it), ``tools`` the versions of what exported it, ``files`` all files of the bundle but helium.json.
    ``package`` says of a bundle that was packaged for one place (helium_onnx.packaging) what for; ``adapters`` of one
    whose graphs take LoRA adapters which there are in it (helium_onnx.adapters). helium.json of others has no such key.
    """

    format_version: int
    helium_onnx: str
    task: str
    licence: str | None
    recipe: dict[str, Any]
    quantization: dict[str, Any]
    model_config: dict[str, Any]
    graphs: dict[str, GraphRecord]
    tensors: tuple[TensorRecord, ...]
    source: tuple[FileRecord, ...]
    tools: dict[str, str]
    files: tuple[FileRecord, ...]
    package: dict[str, Any] = field(default_factory=dict)
    adapters: dict[str, Any] = field(default_factory=dict)

    @property
    def known_task(self) -> Task:
        """``task``, as what the graphs compute. BundleError for a task that this version does not know."""
        for task in TASKS:
            if task == self.task:
                return task
        raise BundleError(
            "the bundle is for a task that this helium-onnx does not know",
            found=repr(self.task)[:80],
            expected=", ".join(TASKS),
            remedy="upgrade: pip install --upgrade helium-onnx",
        )

    @property
    def sha256(self) -> str:
        """The digest that identifies the bundle: of the canonical JSON of this manifest.

        Raises:
            ExportError: a value has no place in JSON, such as a NaN in the recipe.
        """
        try:
            return _digest(self._plain())
        except (TypeError, ValueError, RecursionError) as error:
            raise ExportError(
                "The manifest cannot be written as JSON.",
                found=error,
                expected="text, finite numbers, booleans, lists and objects in recipe and config.json",
                remedy="correct the value in the recipe or in the checkpoint's config.json",
            ) from error

    def to_json(self) -> str:
        """The text of helium.json; equal manifests give equal text.

        Raises:
            ExportError: a value has no place in JSON, such as a NaN in the recipe.
        """
        digest = self.sha256  # first: it refuses what cannot be written
        return strict_json.pretty({**self._plain(), _DIGEST: digest}) + "\n"

    def _plain(self) -> dict[str, Any]:
        ordered = dataclasses.replace(
            self,
            tensors=tuple(sorted(self.tensors, key=lambda tensor: (tensor.offset, tensor.name))),
            source=tuple(sorted(self.source, key=lambda file: file.path)),
            files=tuple(sorted(self.files, key=lambda file: file.path)),
        )
        plain: dict[str, Any] = strict_json.plain(ordered)
        for key in ("package", "adapters"):
            if not plain[key]:
                del plain[key]
        return plain

    @classmethod
    def from_json(cls, text: str, *, source: str) -> Manifest:
        """Read and check helium.json. ``source`` says in errors where the text is from.

        Raises:
            FormatVersionError: written by a newer helium-onnx; nothing but the version was interpreted.
            IntegrityError: not JSON, or not the text that was written (its digest differs).
            BundleError: a key is missing, unknown or repeated; a value has the wrong type or an impossible value.
        """
        try:
            data, flaws = strict_json.parse(text)
        except ValueError as error:
            raise IntegrityError(f"{source} is not JSON.", found=error, remedy=_REMEDY) from error
        if not isinstance(data, dict):
            raise BundleError(f"{source} is not a manifest.", found=type(data).__name__, expected="an object")
        version = data.get("format_version")
        if type(version) is not int or version < 1:
            found = repr(version)[:80] if "format_version" in data else "no format_version"
            expected = f"a whole number from 1 to {FORMAT_VERSION}"
            raise BundleError(f"{source} is not a manifest.", found=found, expected=expected, remedy=_REMEDY)
        if version > FORMAT_VERSION:
            raise FormatVersionError(
                f"{source} was written by a newer helium-onnx.",
                found=f"format_version {str(version)[:20]}",
                expected=f"{FORMAT_VERSION} at most, which is what this helium-onnx reads",
                remedy="upgrade: pip install --upgrade helium-onnx",
            )
        if flaws:
            raise IntegrityError(f"{source} is not strict JSON.", found="; ".join(flaws[:3]), remedy=_REMEDY)
        try:
            recorded, actual = data.pop(_DIGEST, None), _digest(data)
            if recorded != actual:
                found = f"content of SHA-256 {actual}"
                expected = f"{repr(recorded)[:80]}, the {_DIGEST} that it states"
                raise IntegrityError(f"{source} was changed.", found=found, expected=expected, remedy=_REMEDY)
            data.setdefault("quantization", {})  # bundles of 0.1.0's first weeks do not say
            data.setdefault("package", {})
            data.setdefault("adapters", {})
            manifest: Manifest = strict_json.read(cls, data)
            _check_together(manifest)
        except (ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
            raise BundleError(f"{source} is not a valid manifest.", found=str(error)[:500], remedy=_REMEDY) from error
        return manifest


def adapter_files(manifest: Manifest) -> dict[str, str]:
    """The adapters in a bundle by name: the paths of their files. ValueError where the manifest does not say so."""
    match manifest.adapters:
        case {} if not manifest.adapters:
            return {}
        case {"files": dict(files)} if all(isinstance(entry, dict) for entry in files.values()):
            paths = {name: entry.get("file") for name, entry in files.items()}
        case _:
            raise ValueError("adapters is no object with files, an object: name to file")
    return {name: str(path) for name, path in paths.items()}


def _check_path(path: str) -> None:
    """A path that stays in its folder on every system, or ValueError."""
    pure = PurePosixPath(path)
    shortest = str(pure) == path and path != "."
    if not shortest or pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path:
        raise ValueError(f"{path!r} is not a plain path inside the bundle (relative, no '..', no '\\', no ':')")
    if not path.isprintable():  # it goes to terminals and to the file system: no escapes, NUL, lone surrogates
        raise ValueError(f"{path!r} has characters that a file's name may not have")


def _check_together(manifest: Manifest) -> None:
    """What no record can see alone: repeated paths, graphs and tensors of files that the bundle does not have."""
    sizes = {file.path: file.size for file in manifest.files}
    if len(sizes) != len(manifest.files) or MANIFEST_FILE in sizes:
        raise ValueError(f"files has a path twice, or {MANIFEST_FILE} itself")
    for name, graph in manifest.graphs.items():
        if graph.file not in sizes:
            raise ValueError(f"graphs.{name}.file is {graph.file!r}, which files does not list")
    if manifest.adapters:
        for name, path in adapter_files(manifest).items():
            if path not in sizes:
                raise ValueError(f"adapters.files.{name} is {path!r}, which files does not list")
    for tensor in manifest.tensors:
        end, size = tensor.offset + tensor.nbytes, sizes.get(WEIGHTS_FILE, 0)
        if end > size:
            raise ValueError(f"tensor {tensor.name!r} ends at byte {end} of {WEIGHTS_FILE}, which has {size}")


def _digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(strict_json.canonical(data)).hexdigest()
