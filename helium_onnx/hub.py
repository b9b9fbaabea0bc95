"""A checkpoint's name to its folder: a local path as it is, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from helium_onnx.checkpoint import COMPANIONS, CONFIG, README
from helium_onnx.config_fields import short
from helium_onnx.errors import CheckpointNotFoundError, MissingDependencyError, UsageError


def resolve_checkpoint(
    name_or_path: str | os.PathLike[str], *, revision: str | None = None, offline: bool = False
) -> Path:
    """The folder of a checkpoint: a path that exists as it is, or a Hub repository ``owner/name`` in the Hub's cache.

    An existing path touches neither the network nor huggingface_hub. ``revision`` is a branch, tag or commit of a
    repository; ``offline`` (or HF_HUB_OFFLINE=1) takes it from the cache only. Raises CheckpointNotFoundError,
    MissingDependencyError, or UsageError for a revision of a local folder.
    """
    name = os.fspath(name_or_path)
    try:
        path = Path(name).expanduser()
        there = bool(name) and path.exists()
    except (OSError, RuntimeError):  # a name too long, a home of nobody
        path, there = Path(name), False
    if there and revision is not None:
        remedy = "leave the revision out, or name a repository of the Hub"
        raise UsageError(f"a local folder has no revision: {path}", found=revision, expected="none", remedy=remedy)
    if there:
        return path
    if isinstance(name_or_path, os.PathLike) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name, re.ASCII):
        raise CheckpointNotFoundError(
            f"no checkpoint {short(name)}",
            found="nothing at this path",
            expected="a folder with config.json, tokenizer.json and .safetensors files",
            remedy="correct the path, or name a repository of the Hugging Face Hub as owner/name",
        )
    return _from_hub(name, revision, offline)


def _from_hub(name: str, revision: str | None, offline: bool) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub import errors as hub
    except ImportError as error:
        raise MissingDependencyError(
            f"{name} is no local folder, and reading from the Hugging Face Hub takes huggingface_hub",
            expected="huggingface_hub installed, or a folder",
            remedy='pip install "helium-onnx[export]", or pass the folder of a checkpoint',
        ) from error
    patterns = [CONFIG, *COMPANIONS, "*.safetensors", "*.safetensors.index.json", README, "LICENSE*"]
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=patterns, local_files_only=offline
            )
        )
    # Everything: connection errors come as OSError, as httpx's or as requests' own, depending on the library's version.
    except Exception as error:
        reasons = (
            (
                hub.GatedRepoError,
                "is gated",
                f"accept its terms at https://huggingface.co/{name}, then `hf auth login`",
            ),
            (hub.RevisionNotFoundError, f"has no revision {revision}", "name a branch, tag or commit that it has"),
            (hub.RepositoryNotFoundError, "does not exist, or is private", "correct the name, or `hf auth login`"),
            (hub.HFValidationError, "is no name of a repository", "name it as owner/name"),
        )
        fallback = (
            "is not in the cache, and the Hub cannot be reached or may not be asked (no network, or offline)",
            f"download it where there is a network (`hf download {name}`) and pass that folder, "
            "or fill the cache (HF_HOME) with it",
        )
        what, remedy = next(((what, fix) for kind, what, fix in reasons if isinstance(error, kind)), fallback)
        found = f"{type(error).__name__}: {error}".splitlines()[0]
        expected = "a checkpoint on the Hugging Face Hub or in its cache"
        raise CheckpointNotFoundError(f"{name} {what}", found=found, expected=expected, remedy=remedy) from error
