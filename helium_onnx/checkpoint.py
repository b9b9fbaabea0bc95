"""A checkpoint on disk: found (a folder, or a repository of the Hugging Face Hub), checked, and read tensor by tensor.

Weights are read by ``os.preadv`` into buffers of the caller's size, never mapped: pages of a mapped file would count
as the exporter's memory. The safetensors header is checked here, since a hostile one must not send a read astray, and
the shard index, whose paths nobody else checks. Format: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import fnmatch
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from helium_onnx import strict_json
from helium_onnx.config import HeliumConfig, short
from helium_onnx.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    MissingDependencyError,
    UsageError,
    WeightsError,
)

CONFIG, SINGLE, INDEX, README = "config.json", "model.safetensors", "model.safetensors.index.json", "README.md"
#: Small files that belong to a checkpoint, as patterns of their names.
COMPANIONS = ("generation_config.json", "tokenizer*.json", "special_tokens_map.json")

#: Bits of an element for each dtype of the format; those with a row in ``_READABLE`` can be read.
_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16}
_BITS |= {"BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64}
#: The unsigned integer that holds an element, and its value for infinity: the exponent's bits, all set.
_READABLE: dict[str, tuple[np.dtype[np.unsignedinteger], int]] = {
    "BF16": (np.dtype("<u2"), 0x7F80),
    "F16": (np.dtype("<u2"), 0x7C00),
    "F32": (np.dtype("<u4"), 0x7F800000),
}
_MAX_HEADER = 100_000_000  # the safetensors library's own limit
_BLOCK = 1 << 18  # elements converted at once: 1 MiB of float32 stays in the cache between read, check and conversion
_AGAIN = "download the checkpoint again"


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: ``nbytes`` of ``file`` from ``offset`` on; ``dtype`` in safetensors' names (``BF16``)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


class Checkpoint:
    """A folder with config.json, tokenizer and safetensors. Make it by ``Checkpoint.open``; it holds no open file."""

    def __init__(
        self, folder: Path, config: HeliumConfig, tensors: Mapping[str, TensorInfo], files: list[Path]
    ) -> None:
        self.folder = folder
        self.config = config
        self.tensors = MappingProxyType(dict(tensors))
        self._files = files

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read the config and the headers of all shards; no weight.

        Raises CheckpointNotFoundError, ConfigError or WeightsError.
        """
        if not folder.is_dir():
            raise CheckpointNotFoundError(
                f"{folder} is no checkpoint",
                found="a file" if folder.exists() else "nothing",
                expected="a folder with config.json, tokenizer.json and .safetensors files",
                remedy="pass the checkpoint's folder, or a repository of the Hub as owner/name",
            )
        # A config that is not there is from_file's to report.
        config_file = _inside(folder, CONFIG, ConfigError) if os.path.lexists(folder / CONFIG) else folder / CONFIG
        config = HeliumConfig.from_file(config_file)
        try:
            names = sorted(entry.name for entry in folder.iterdir())
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be listed", found=error, remedy="check its permissions") from error
        small = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in COMPANIONS)]
        files = [config_file, *(_inside(folder, name, CheckpointError) for name in small)]
        if SINGLE in names:  # transformers prefers it to an index as well
            shard = _inside(folder, SINGLE, WeightsError)
            return cls(folder, config, read_header(shard), [*files, shard])
        if INDEX not in names:
            raise _no_safetensors(folder, names)
        index = _inside(folder, INDEX, WeightsError)
        weight_map = _read_index(index)
        shards = {name: _inside(folder, name, WeightsError, named_by=INDEX) for name in sorted({*weight_map.values()})}
        held = {name: read_header(shard) for name, shard in shards.items()}
        if absent := [name for name, shard in weight_map.items() if name not in held[shard]]:
            raise WeightsError(
                f"{folder} lacks tensors in the shards where {INDEX} places them",
                found=_first(absent, "missing"),
                expected="index and shards of one checkpoint",
                remedy=_AGAIN,
            )
        tensors = {name: held[shard][name] for name, shard in weight_map.items()}
        return cls(folder, config, tensors, [*files, index, *shards.values()])

    def source_files(self) -> list[Path]:
        """Config, generation config, tokenizer, shards and their index, as far as they are there: what to digest."""
        return list(self._files)

    @property
    def licence(self) -> str | None:
        """``license:`` from the front matter of README.md (``license_name:`` where that is ``other``), or None."""
        path = self.folder / README
        if not path.is_file():
            return None
        with _inside(self.folder, README, CheckpointError).open("rb") as file:
            lines = file.read(1 << 16).decode("utf-8", errors="replace").splitlines()
        if not lines or lines[0].strip() != "---":
            return None
        found: dict[str, str] = {}
        for line in lines[1:]:
            if line.strip() == "---":
                break
            if match := re.fullmatch(r"(license|license_name):\s*([\"']?)([\w.+-]+)\2\s*(#.*)?", line):
                found[match[1]] = match[3]
        return found.get("license_name", "other") if found.get("license") == "other" else found.get("license")

    def check_tensors(self, config: HeliumConfig) -> None:
        """Hold the checkpoint against what ``config`` asks for. Raises WeightsError.

        Every expected tensor is there, in its shape and in a dtype that can be read. Other tensors are ignored
        (``rotary_emb.inv_freq``, the unused head of a tied model) unless the model would need them to be right:
        biases of its modules, and weights inside ``model.layers`` (a layer beyond the last, a norm of the queries).
        """
        expected = expected_tensors(config)
        where = f"the checkpoint {self.folder}"
        fix = "check that config.json and the weights belong together"
        if missing := [name for name in expected if name not in self.tensors]:
            hint = "; set tie_word_embeddings if the head is the embedding" if missing == ["lm_head.weight"] else ""
            raise WeightsError(
                f"{where} lacks tensors",
                found=_first(missing, "missing"),
                expected=f"the {len(expected)} tensors that config.json asks for",
                remedy=fix + hint,
            )
        for name, shape in expected.items():
            info = self.tensors[name]
            if info.shape != shape:
                raise WeightsError(
                    f"{where}: {name} has another shape than config.json says",
                    found=list(info.shape),
                    expected=list(shape),
                    remedy=fix,
                )
            _readable(info)
        modules = {name.removesuffix(".weight") for name in expected} | {"lm_head"}
        foreign = [
            name
            for name in self.tensors
            if (name.endswith(".bias") and name.removesuffix(".bias") in modules)
            or (name.startswith("model.layers.") and name.endswith(".weight") and name not in expected)
        ]
        if foreign:
            raise WeightsError(
                f"{where} has tensors that Helium has no place for",
                found=_first(foreign, "more than expected"),
                expected=f"no biases, and {config.num_hidden_layers} layers of nine weights each",
                remedy=fix,
            )

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """The whole tensor as float32, in an array of its own. Raises WeightsError: absent, truncated, not finite."""
        info = self._info(name)
        return self._read(info, 0, math.prod(info.shape)).reshape(info.shape)

    def read_rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows ``start`` to ``stop`` of the first axis as float32 ``[stop - start, ...]``; raises as ``read``."""
        info = self._info(name)
        assert 0 <= start <= stop <= (info.shape or (0,))[0], f"rows {start}:{stop} of {name} {info.shape}"
        width = math.prod(info.shape[1:])
        return self._read(info, start * width, (stop - start) * width).reshape(stop - start, *info.shape[1:])

    def iter_rows(self, name: str, max_bytes: int = 16 << 20) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """The tensor in pieces: (first row, float32 ``[rows, ...]``) of at most ``max_bytes``, but at least one row.

        All pieces share one buffer, so that memory stays at ``max_bytes``: a piece is valid until the next is asked
        for; copy what must live longer. Raises as ``read``.
        """
        info = self._info(name)
        assert info.shape, f"{name} has no rows"
        rows, width = info.shape[0], math.prod(info.shape[1:])
        step = min(rows, max(1, max_bytes // max(1, 4 * width)))
        buffer = np.empty(step * width, np.float32)
        with _opened(info.file) as fd:
            for start in range(0, rows, max(1, step)):
                piece = buffer[: min(step, rows - start) * width]
                _fill(fd, info, start * width, piece)
                yield start, piece.reshape(min(step, rows - start), *info.shape[1:])

    def _read(self, info: TensorInfo, first: int, count: int) -> npt.NDArray[np.float32]:
        out = np.empty(count, np.float32)
        with _opened(info.file) as fd:
            _fill(fd, info, first, out)
        return out

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise WeightsError(
                f"the checkpoint {self.folder} has no tensor {short(name)}",
                found=f"{len(self.tensors)} others",
                expected="a name out of `tensors`",
                remedy="call check_tensors first: it names all that are missing",
            )
        return _readable(self.tensors[name])


def expected_tensors(config: HeliumConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of HeliumForCausalLM's weights (modeling_helium.py; Llama's are the same), layer by layer."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    layer = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    embedding = (config.vocab_size, hidden)
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": embedding}
    for i in range(config.num_hidden_layers):
        tensors |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    tensors["model.norm.weight"] = (hidden,)
    return tensors if config.tie_word_embeddings else {**tensors, "lm_head.weight": embedding}


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file. Raises WeightsError unless they fill the file exactly, without overlap."""

    def unsound(found: object, expected: str, remedy: str = _AGAIN) -> WeightsError:
        return WeightsError(f"{path} is no sound safetensors file", found=found, expected=expected, remedy=remedy)

    with _opened(path) as fd:
        size = os.fstat(fd).st_size
        start = os.pread(fd, 64, 0)
        if start.startswith(b"version https://git-lfs"):
            raise unsound(
                "a Git LFS pointer", "the weights themselves", "run `git lfs pull` in the checkpoint's folder"
            )
        length = int.from_bytes(start[:8], "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            found = f"a header of {length:,} bytes in a file of {size:,}" if size >= 8 else f"{size} bytes"
            raise unsound(found, f"a header that lies in the file, of at most {_MAX_HEADER:,} bytes")
        text = os.pread(fd, length, 8)
    try:
        header = _json_object(text)
    except ValueError as error:
        raise unsound(error, "a header that is a JSON object in UTF-8") from error
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        match entry:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if dtype in _BITS:
                pass
            case _:
                raise unsound(f"{short(name)}: {short(entry)}", "a known dtype, a shape and two data_offsets")
        # Eight axes and 63 bits an axis: or the product of a hostile shape would take minutes.
        if len(shape) > 8 or not all(type(dim) is int and 0 <= dim < 1 << 63 for dim in shape):
            raise unsound(f"{short(name)} of shape {short(shape)}", "at most eight axes, of integers from 0")
        if not 0 <= begin <= end:
            raise unsound(f"{short(name)} from {short(begin)} to {short(end)}", "data_offsets that ascend from 0")
        if (nbytes := math.prod(shape) * _BITS[dtype] // 8) != end - begin:
            raise unsound(f"{short(name)} in {short(end - begin)} bytes", f"{nbytes:,} for {dtype} {short(shape)}")
        tensors[name] = TensorInfo(name, dtype, tuple(shape), path, 8 + length + begin, nbytes)
    end = 8 + length
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.nbytes)):
        if info.offset != end:
            raise unsound(
                f"{short(info.name)} at byte {short(info.offset)}", f"it at {end:,}, where the one before ends"
            )
        end += info.nbytes
    if end != size:
        what = "truncated" if size < end else "longer than its tensors"
        raise unsound(f"{size:,} bytes: the file is {what}", f"{end:,} bytes, as its header says")
    return tensors


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


def _inside(folder: Path, name: str, error: type[CheckpointError], named_by: str | None = None) -> Path:
    """``folder / name``, if it is a plain name of a regular file inside the folder; otherwise ``error``.

    The Hub's cache is the one place where links may leave the folder: from models--*/snapshots/* to the blobs of the
    repository, and on to those that huggingface_hub 2 shares between repositories (its utils/_shared_blobs.py).
    """
    by = f", named by {named_by}," if named_by else ""
    try:
        home = folder.resolve()
        homes = [home]
        if home.parent.name == "snapshots" and home.parent.parent.name.startswith("models--"):
            homes += [home.parents[1] / "blobs", home.parents[2] / "blobs"]
        plain = name not in ("", ".", "..") and not set(name) & set("/\\\0")
        target = (home / name).resolve() if plain else None
        if target is None or not any(target.is_relative_to(home) for home in homes):
            raise error(
                f"{folder}: the file {short(name)}{by} lies outside the checkpoint",
                found=target or short(name),
                expected="the plain name of a file in the folder, not a path or a link that leaves it",
                remedy="put the file itself into the folder; distrust the checkpoint if you did not link it",
            )
        there = target.is_file()
    except (OSError, RuntimeError, ValueError) as problem:  # a loop of links, a name too long or not in UTF-8
        raise error(f"{folder}: the file {short(name)}{by} cannot be found", found=problem, remedy=_AGAIN) from problem
    if not there:
        raise error(f"{folder}: the file {short(name)}{by} is missing", expected="a regular file", remedy=_AGAIN)
    return folder / name


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name to shard, as the index says; the shards' names are still to be distrusted."""
    try:
        if path.stat().st_size > _MAX_HEADER:
            raise ValueError(f"more than {_MAX_HEADER:,} bytes")
        weight_map = _json_object(path.read_bytes()).get("weight_map")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read", found=error, expected="a JSON object", remedy=_AGAIN) from error
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        expected = "an object: tensor name to file name"
        raise WeightsError(
            f"{path}: weight_map cannot be used", found=short(weight_map), expected=expected, remedy=_AGAIN
        )
    return weight_map


def _json_object(data: bytes) -> dict[str, Any]:
    """Raises ValueError: no JSON object in UTF-8, a key twice, NaN or Infinity."""
    value, flaws = strict_json.parse(data.decode())
    if flaws or not isinstance(value, dict):
        raise ValueError("; ".join(flaws) or f"{short(value)}, not an object")
    return value


def _no_safetensors(folder: Path, names: list[str]) -> WeightsError:
    pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    convert = (
        'convert them where you trust them: python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{folder}').save_pretrained('converted')\""
    )
    return WeightsError(
        f"{folder} holds no safetensors weights",
        found=f"{', '.join(pickled[:3])} (pickled: reading it would run its code)" if pickled else "none",
        expected=f"{SINGLE}, or {INDEX} and its shards",
        remedy=convert if pickled else "download the .safetensors files into the folder",
    )


def _readable(info: TensorInfo) -> TensorInfo:
    if info.dtype not in _READABLE:
        raise WeightsError(
            f"{info.file}: the tensor {info.name} has a dtype that cannot be exported",
            found=info.dtype,
            expected=" or ".join(_READABLE),
            remedy="take the checkpoint that is not quantized; a recipe quantizes it",
        )
    return info


def _first(names: list[str], what: str) -> str:
    return f"{len(names)} {what}: {', '.join(map(short, names[:5]))}{' ...' if len(names) > 5 else ''}"


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise WeightsError(f"{path} cannot be opened", found=error, remedy="check its permissions") from error
    try:
        yield fd
    finally:
        os.close(fd)


def _fill(fd: int, info: TensorInfo, first: int, out: npt.NDArray[np.float32]) -> None:
    """Elements from ``first`` on into ``out`` (flat, contiguous), a block at a time: read, check, convert."""
    unsigned, infinity = _READABLE[info.dtype]
    signed, sign = np.dtype(f"<i{unsigned.itemsize}"), 1 << (8 * unsigned.itemsize - 1)
    scratch = np.empty(0 if info.dtype == "F32" else min(_BLOCK, out.size), unsigned)
    for done in range(0, out.size, _BLOCK):
        target = out[done : done + _BLOCK]
        raw = target.view(unsigned) if info.dtype == "F32" else scratch[: target.size]
        _read_exactly(fd, info, (first + done) * unsigned.itemsize, raw.data.cast("B"))
        # Infinities and NaN are the largest bit patterns of either sign: two maxima find them, without a temporary.
        if raw.view(signed).max() >= infinity or raw.max() >= sign | infinity:
            at = int(np.flatnonzero((raw & infinity) == infinity)[0])
            raise WeightsError(
                f"{info.file}: the tensor {info.name} is not finite",
                found=f"{'NaN' if raw[at] & (infinity ^ (sign - 1)) else 'an infinity'} at "
                f"{[int(i) for i in np.unravel_index(first + done + at, info.shape)]}",
                expected="finite numbers",
                remedy=f"{_AGAIN}; if it stays, its training or conversion has failed",
            )
        if info.dtype == "BF16":  # bfloat16 is the upper half of a float32
            bits = target.view(np.uint32)
            bits[...] = raw
            bits <<= 16
        elif info.dtype == "F16":
            target[...] = raw.view(np.float16)


def _read_exactly(fd: int, info: TensorInfo, begin: int, into: memoryview) -> None:
    done = 0
    while done < into.nbytes:
        try:
            count = os.preadv(fd, [into[done:]], info.offset + begin + done)
        except OSError as error:
            raise WeightsError(f"{info.file} cannot be read", found=error, remedy="check the disk") from error
        if count == 0:
            raise WeightsError(
                f"{info.file} is truncated",
                found=f"its end at byte {begin + done:,} of the tensor {info.name}",
                expected=f"{info.nbytes:,} bytes of it",
                remedy=_AGAIN,
            )
        done += count
