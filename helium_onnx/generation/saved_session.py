"""A prefix cache on the disk: one safetensors file, written whole or not at all.

    token_ids       int64 [blocks, block_tokens]
    parents         int64 [blocks], the number of the block before, -1 at a text's beginning; smaller than its own
    {block}.{i}     [num_key_value_heads, block_tokens, head_dim], what ``Past.read_slots`` gives, tensor by tensor

Blocks are in order of use, the latest first. The metadata hold the format's version, the bundle's identity, what the
cache's blocks are (tokens in each, kinds of tensors), and a SHA-256 of it all: safetensors itself knows no changed bit.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from helium_onnx import atomic
from helium_onnx.errors import ExportError, SavedSessionError, TargetLockedError
from helium_onnx.generation.prefix_cache import Entry, Layout, PrefixCache
from helium_onnx.locking import exclusive_lock
from helium_onnx.runtimes.session import Past

FORMAT_VERSION = "1"
_ANEW = "delete the file, and generate with it anew"


def save(path: Path, cache: PrefixCache, identity: str) -> None:
    """Write what ``cache`` holds to ``path``; a file there is replaced in one step.

    Raises:
        SavedSessionError: the file cannot be written; an old one is still whole.
    """
    entries = cache.entries()
    tensors: dict[str, NDArray[Any]] = {
        "token_ids": np.array([entry.token_ids for entry in entries], np.int64).reshape(-1, cache.block_tokens),
        "parents": np.array([entry.parent for entry in entries], np.int64),
    }
    for number, entry in enumerate(entries):
        for index, tensor in enumerate(entry.tensors):
            tensors[f"{number}.{index}"] = np.ascontiguousarray(tensor)
    metadata = {
        "format_version": FORMAT_VERSION,
        "bundle": identity,
        "block_tokens": str(cache.block_tokens),
        "blocks": _kinds(entries[0].tensors if entries else []),
    }
    digest = _digest(metadata)
    for tensor in tensors.values():
        digest.update(tensor.data)
    metadata["sha256"] = digest.hexdigest()
    try:
        with exclusive_lock(path):
            _write(path, tensors, metadata)
    except TargetLockedError as error:
        raise SavedSessionError(
            f"{path} is being written by another process", found=error.found, remedy="wait for it, or choose another"
        ) from None
    except (OSError, safetensors.SafetensorError, ExportError) as error:
        raise SavedSessionError(
            f"{path} cannot be written",
            found=error.found if isinstance(error, ExportError) else error,
            expected=f"a folder with room for {sum(t.nbytes for t in tensors.values()) / 1e6:,.1f} MB",
            remedy="choose a file in another folder, or correct this one's permissions",
        ) from error


def _write(path: Path, tensors: dict[str, NDArray[Any]], metadata: dict[str, str]) -> None:
    """Beside its place first, in a folder that ``atomic.recover`` removes, also after a process was killed."""
    atomic.recover(path)
    try:
        partial = atomic.make_partial(path) / path.name
        safetensors.numpy.save_file(tensors, partial, metadata)
        partial.chmod(0o600)  # it holds what was written and answered
        atomic.fsync(partial)
        partial.replace(path)
        atomic.fsync(path.parent)
    finally:
        atomic.recover(path)


def load(path: Path, cache: PrefixCache, identity: str, past: Past) -> None:
    """Take what ``path`` holds into ``cache``, as much as fits; ``past`` is an empty one-row past of the session.

    Raises:
        SavedSessionError: the file is missing, damaged, of another format version, or of another bundle or cache.
    """
    layout = Layout.of(past)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            entries = _read(path, file, cache, identity, layout)
    except FileNotFoundError:
        raise SavedSessionError(
            f"There is no saved session {path}", expected="a file that save_session wrote", remedy="check the path"
        ) from None
    except OSError as error:
        raise SavedSessionError(f"{path} cannot be read", found=error, remedy="correct its permissions") from error
    except safetensors.SafetensorError as error:
        raise _damaged(path, error) from error
    cache.merge(entries, layout)


def _read(path: Path, file: Any, cache: PrefixCache, identity: str, layout: Layout) -> list[Entry]:
    """All entries, checked; of those that do not fit, nothing stays in memory."""
    metadata = dict(file.metadata() or {})
    expected_hash = metadata.pop("sha256", None)
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise SavedSessionError(
            f"{path} is no saved session that this helium-onnx reads",
            found="another safetensors file" if version is None else f"format version {version}",
            expected=f"format version {FORMAT_VERSION}",
            remedy=_ANEW if version is None else f"use the helium-onnx that wrote it, or {_ANEW}",
        )
    _check_fits(path, metadata, cache, identity)
    names = set(file.keys())
    if not {"token_ids", "parents"} <= names:
        raise _damaged(path, "no token_ids or parents")
    token_ids, parents = file.get_tensor("token_ids"), file.get_tensor("parents")
    count, kinds = parents.size, layout.tensors
    if (
        token_ids.shape != (count, cache.block_tokens)
        or parents.shape != (count,)
        or not all(-1 <= parent < number for number, parent in enumerate(parents.tolist()))
        or names != {"token_ids", "parents", *(f"{n}.{i}" for n in range(count) for i in range(len(kinds)))}
    ):
        raise _damaged(path, "blocks that are not listed, or listed blocks that are missing")
    digest = _digest(metadata)
    digest.update(token_ids.data)
    digest.update(parents.data)
    room = cache.capacity(layout)
    entries: list[Entry] = []
    for number in range(count):
        tensors = [file.get_tensor(f"{number}.{index}") for index in range(len(kinds))]
        for tensor, (dtype, heads, head_dim) in zip(tensors, kinds, strict=True):
            if tensor.dtype.name != dtype or tensor.shape != (heads, cache.block_tokens, head_dim):
                raise _damaged(path, f"{tensor.dtype.name} {list(tensor.shape)} in block {number}")
            digest.update(tensor.data)
        if number < room:
            entries.append(Entry(int(parents[number]), tuple(token_ids[number].tolist()), tensors))
    if digest.hexdigest() != expected_hash:
        raise _damaged(path, "another content than was written (its SHA-256 differs)")
    return entries


def _check_fits(path: Path, metadata: dict[str, str], cache: PrefixCache, identity: str) -> None:
    """Raise where the file is of another model, or of other kernels."""
    if metadata.get("bundle") != identity:
        raise SavedSessionError(
            f"{path} is the session of another bundle",
            found=str(metadata.get("bundle"))[:64],
            expected=identity,
            remedy="load the bundle that it was saved with, or choose another file",
        )
    if metadata.get("block_tokens") != str(cache.block_tokens):
        raise SavedSessionError(
            f"{path} was saved by other kernels: its keys and values cannot be reused exactly",
            found=f"blocks of {str(metadata.get('block_tokens'))[:20]} tokens",
            expected=f"blocks of {cache.block_tokens} tokens",
            remedy="load the bundle with the kernels that it was saved with (--kernels), or choose another file",
        )


def _kinds(tensors: list[NDArray[Any]]) -> str:
    """What the tensors of a block are, for who reads the file: ``[["float32", 2, 64], ...]``."""
    return json.dumps([[t.dtype.name, t.shape[0], t.shape[2]] for t in tensors])


def _digest(metadata: dict[str, str]) -> hashlib._Hash:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())


def _damaged(path: Path, found: object) -> SavedSessionError:
    return SavedSessionError(
        f"{path} is damaged", found=found, expected="a file as save_session wrote it", remedy=_ANEW
    )
