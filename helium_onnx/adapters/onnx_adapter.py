"""ONNX Runtime's adapter file (``.onnx_adapter``): written of a PEFT folder, and read for a bundle.

The file holds the matrices under the names of the graphs' inputs (``parameters.py``), scales multiplied in. Its
``model_version`` tells the base model: 31 bits of its weights' digests, the same for all bundles of one checkpoint.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from helium_onnx import atomic
from helium_onnx.adapters.config import names_of
from helium_onnx.adapters.parameters import LinearModule
from helium_onnx.adapters.peft_folder import PeftFolder
from helium_onnx.config_fields import short
from helium_onnx.errors import AdapterError, TargetExistsError, UsageError
from helium_onnx.locking import exclusive_lock
from helium_onnx.manifest import FileRecord

SUFFIX = ".onnx_adapter"
#: Of the files' ``adapter_version``: how names, shapes and scales are to be read.
ADAPTER_VERSION = 1

Matrices = dict[str, NDArray[np.float32]]


def base_number(source: Iterable[FileRecord]) -> int:
    """From 1 to 2^31 - 1: what tells a checkpoint from others by the digests of its safetensors files."""
    digests = sorted(record.sha256 for record in source if record.path.endswith(".safetensors"))
    number = int.from_bytes(hashlib.sha256("\n".join(digests).encode()).digest()[:4], "little") & 0x7FFFFFFF
    return number or 1


def runtime_matrices(adapter: PeftFolder, modules: Iterable[LinearModule]) -> Matrices:
    """What the graphs take of a PEFT folder: A float32 ``[columns, rank]`` and B ``[rank, rows]`` of each module.

    Raises:
        AdapterError: it changes more than the layers' linear modules.
        WeightsError: truncated, or not finite.
    """
    by_weight = {f"{module.name}.weight": module for module in modules}
    check_updates(adapter, by_weight.values())
    matrices: Matrices = {}
    for weight, update in adapter.updates.items():
        left, right = update.factors()
        module = by_weight[weight]
        matrices[module.a], matrices[module.b] = np.ascontiguousarray(right.T), np.ascontiguousarray(left.T)
    return matrices


def check_updates(adapter: PeftFolder, modules: Iterable[LinearModule]) -> None:
    """Raise AdapterError where the adapter changes more than ``modules``."""
    by_weight = {f"{module.name}.weight" for module in modules}
    if beyond := {*adapter.updates, *adapter.replaced} - by_weight:
        raise AdapterError(
            f"{adapter.folder} cannot be applied at run time",
            found=f"changes of {names_of(beyond)}",
            expected="low-rank matrices for the linear modules of the layers alone",
            remedy="merge it at export: leave out --adapter-mode runtime",
        )


def write(path: Path, matrices: Mapping[str, NDArray[np.float32]], base: int) -> None:
    """Write an adapter file at ``path``, as it is; equal matrices give equal bytes."""
    values = {name: ort.OrtValue.ortvalue_from_numpy(matrices[name]) for name in sorted(matrices)}
    adapter = ort.AdapterFormat()
    adapter.set_adapter_version(ADAPTER_VERSION)
    adapter.set_model_version(base)
    adapter.set_parameters(values)
    adapter.export_adapter(str(path.absolute()))


def checked_target(path: Path, *, force: bool) -> Path:
    """``path``, if a file can be written there; ``force`` replaces one that is there.

    Raises:
        UsageError: the name does not end as ONNX Runtime's adapter files do.
        TargetExistsError: it is there, and ``force`` is not given, or it is no file.
    """
    if path.suffix != SUFFIX:
        raise UsageError(f"{path} is no name for an adapter file", expected=f"a name that ends in {SUFFIX}")
    if os.path.lexists(path) and not (force and path.is_file()):
        raise TargetExistsError(f"{path} exists.", remedy="--force replaces a file; or choose another name")
    return path


def write_in_place(path: Path, matrices: Mapping[str, NDArray[np.float32]], base: int) -> None:
    """Write a file that is whole or not there, whatever interrupts it. One that is there is replaced.

    Raises TargetLockedError, ResourceError or ExportError where it cannot be written.
    """
    needed = sum(matrix.nbytes for matrix in matrices.values())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(path):
            atomic.recover(path)
            try:
                partial = atomic.make_partial(path) / path.name
                write(partial, matrices, base)
                atomic.fsync(partial)
                partial.replace(path)
                atomic.fsync(path.parent)
            finally:
                atomic.recover(path)
    except OSError as error:
        raise atomic.export_error(error, path, needed) or error from error


def read(path: Path, modules: Iterable[LinearModule], base: int) -> Matrices:
    """The matrices of an adapter file, which fit a bundle whose graphs take adapters for ``modules``.

    Raises:
        AdapterError: no such file, no adapter file, one of another base model, or matrices that are incomplete, of
            another shape or dtype, or not finite.
    """
    again = "make it anew: helium-onnx convert-adapter"
    try:
        with path.open("rb"):  # says more than ONNX Runtime does
            pass
        adapter = ort.AdapterFormat.read_adapter(str(path.absolute()))
    except OSError as error:
        expected = f"a file that ends in {SUFFIX}"
        raise AdapterError(f"{path} cannot be read", found=error.strerror, expected=expected) from error
    except Exception as error:  # ONNX Runtime's exceptions have no base of their own
        expected = "ONNX Runtime's adapter format"
        raise AdapterError(
            f"{path} is no adapter file", found="other or damaged content", expected=expected, remedy=again
        ) from error
    version = adapter.get_adapter_version()
    if version != ADAPTER_VERSION:
        found = f"adapter_version {version}: made by another program, or by a newer helium-onnx"
        raise AdapterError(f"{path} cannot be used", found=found, expected=str(ADAPTER_VERSION), remedy=again)
    if adapter.get_model_version() != base:
        raise AdapterError(
            f"{path} was made for another base model",
            found=f"model_version {adapter.get_model_version()}",
            expected=f"{base}, that of this bundle's checkpoint",
            remedy="convert the PEFT folder for this bundle: helium-onnx convert-adapter",
        )
    values, matrices = adapter.get_parameters(), Matrices()
    for module in modules:
        given = [values.pop(name, None) for name in (module.a, module.b)]
        if given == [None, None]:
            continue
        if None in given:
            name = module.b if given[1] is None else module.a
            raise AdapterError(f"{path} lacks a matrix", found=f"no {name}", expected="both of a module", remedy=again)
        a, b = (np.array(value.numpy()) for value in given)  # a copy: the file's memory is gone when this returns
        matrices_of_floats = a.dtype == b.dtype == np.float32 and a.ndim == b.ndim == 2
        if not matrices_of_floats or (a.shape, b.shape) != ((module.columns, b.shape[0]), (a.shape[1], module.rows)):
            found = " and ".join(f"{value.data_type()} {value.shape()}" for value in given)
            expected = f"float [{module.columns}, rank] and [rank, {module.rows}]"
            what = f"{path}: the matrices of {module.name} do not fit"
            raise AdapterError(what, found=found, expected=expected, remedy=again)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            what = f"{path}: the matrices of {module.name} are not finite"
            raise AdapterError(what, expected="finite numbers", remedy=again)
        matrices[module.a], matrices[module.b] = a, b
    if values or not matrices:
        found = names_of(values) if values else "no matrices at all"
        raise AdapterError(
            f"{path} does not fit the bundle's graphs",
            found=found if len(found) < 400 else short(found),
            expected="lora_A.weight and lora_B.weight of linear modules of the layers",
            remedy=again,
        )
    return matrices
