"""A checkpoint on disk: a folder with config.json, tokenizer and safetensors, checked, and read tensor by tensor.

The shard index is checked here, since nobody else checks its paths; the files themselves in safetensors_file.py.
"""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from helium_onnx.config import HeliumConfig
from helium_onnx.config_fields import short
from helium_onnx.errors import CheckpointError, CheckpointNotFoundError, ConfigError, WeightsError
from helium_onnx.safetensors_file import AGAIN, MAX_HEADER, TensorInfo, fill, json_object, opened, read_header, readable
from helium_onnx.tasks import ROWS, Task, task_of

CONFIG, SINGLE, INDEX, README = "config.json", "model.safetensors", "model.safetensors.index.json", "README.md"
#: The tensors outside the layers.
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
#: A classifier's.
SCORE, SCORE_BIAS = "score.weight", "score.bias"
#: How GPTQ, AWQ and compressed-tensors name the codes of a matrix.
_QUANTIZED = (".qweight", ".weight_packed")
#: Small files that belong to a checkpoint, as patterns of their names.
COMPANIONS = ("generation_config.json", "tokenizer*.json", "special_tokens_map.json")


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
            return cls(folder, config, _full_names(read_header(shard)), [*files, shard])
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
                remedy=AGAIN,
            )
        tensors = {name: held[shard][name] for name, shard in weight_map.items()}
        return cls(folder, config, _full_names(tensors), [*files, index, *shards.values()])

    def source_files(self) -> list[Path]:
        """Config, generation config, tokenizer, shards and their index, as far as they are there: what to digest."""
        return list(self._files)

    def source_name(self, path: Path) -> str:
        """What a manifest calls one of ``source_files``: its path in the folder."""
        return path.relative_to(self.folder).as_posix()

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

    def as_task(self, task: Task | None, labels: HeliumConfig | None = None) -> Self:
        """The same checkpoint as the model of ``task``, or of the task that config.json names.

        A classifier's labels are named by config.json, or by ``labels``, the config of an adapter that brings them;
        else ``LABEL_0``, ``LABEL_1`` ..., as transformers does.

        Raises:
            ConfigError: config.json names a class that has no task here.
            WeightsError: a classifier is asked for, and there is none.
        """
        config = self.config
        chosen = task or task_of(config.architectures, config.model_type)
        if chosen is None:
            raise ConfigError(
                f"{self.folder / CONFIG} names a class that helium-onnx does not build",
                found=", ".join(map(short, config.architectures)),
                expected=", ".join(row.architecture(config.model_type) for row in ROWS.values()),
                remedy=f"say what to export it as: --task {' or '.join(ROWS)}",
            )
        changes: dict[str, Any] = {"architectures": (ROWS[chosen].architecture(config.model_type),)}
        if not ROWS[chosen].labels:
            changes |= {"id2label": (), "problem_type": None, "token_classification_bias": True}
        elif SCORE not in self.tensors:
            raise WeightsError(
                f"the checkpoint {self.folder} has no classifier",
                found=f"no {SCORE}, and the class {', '.join(map(short, config.architectures)) or 'not said'}",
                expected=f"the weights of {ROWS[chosen].architecture(config.model_type)}",
                remedy="fine-tune the model for the task first, or add an adapter that holds its head: --adapter",
            )
        elif not config.id2label:
            shape = self.tensors[SCORE].shape
            named = labels.id2label if labels is not None else ()
            changes["id2label"] = named or tuple(f"LABEL_{i}" for i in range(shape[0] if shape else 0))
            if labels is not None:
                changes["problem_type"] = config.problem_type or labels.problem_type
        changed = copy.copy(self)
        changed.config = dataclasses.replace(config, **changes)
        return changed

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
            hint = "; set tie_word_embeddings if the head is the embedding" if missing == [HEAD] else ""
            if any(name.endswith(_QUANTIZED) for name in self.tensors):
                hint = "; these weights are quantized already: pass the checkpoint that they were made from"
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
            readable(info)
        modules = {name.removesuffix(".weight") for name in expected if name.endswith(".weight")} | {"lm_head"}
        foreign = [
            name
            for name in self.tensors
            if (name.endswith(".bias") and name not in expected and name.removesuffix(".bias") in modules)
            or (name.startswith("model.layers.") and name.endswith(".weight") and name not in expected)
        ]
        if foreign:
            raise WeightsError(
                f"{where} has tensors that Helium has no place for",
                found=_first(foreign, "more than expected"),
                expected=f"no biases, and {config.num_hidden_layers} layers of nine weights each",
                remedy=f"{fix}; a model that has these is no Helium: export it with optimum-onnx",
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
        with opened(info.file) as fd:
            for start in range(0, rows, max(1, step)):
                piece = buffer[: min(step, rows - start) * width]
                fill(fd, info, start * width, piece)
                yield start, piece.reshape(min(step, rows - start), *info.shape[1:])

    def gather_rows(self, name: str, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Rows ``indices`` of a matrix, float32 ``[len(indices), columns]``, in their order; raises as ``read``.

        The matrix is streamed: of a vocabulary's embedding, a text's tokens alone stay in memory.
        """
        out = np.empty((len(indices), *self._info(name).shape[1:]), np.float32)
        for first, rows in self.iter_rows(name):
            here = np.flatnonzero((indices >= first) & (indices < first + len(rows)))
            out[here] = rows[indices[here] - first]
        return out

    def _read(self, info: TensorInfo, first: int, count: int) -> npt.NDArray[np.float32]:
        out = np.empty(count, np.float32)
        with opened(info.file) as fd:
            fill(fd, info, first, out)
        return out

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise WeightsError(
                f"the checkpoint {self.folder} has no tensor {short(name)}",
                found=f"{len(self.tensors)} others",
                expected="a name out of `tensors`",
                remedy="call check_tensors first: it names all that are missing",
            )
        return readable(self.tensors[name])


def expected_tensors(config: HeliumConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of the class that ``config.architectures`` names (modeling_helium.py; Llama's are
    the same), layer by layer. Those of HeliumModel are as they are inside of the other classes, behind ``model.``.
    """
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
    tensors: dict[str, tuple[int, ...]] = {EMBEDDING: embedding}
    for i in range(config.num_hidden_layers):
        tensors |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    tensors[NORM] = (hidden,)
    if config.task in ("text-classification", "token-classification"):
        tensors[SCORE] = (config.num_labels, hidden)
        if config.task == "token-classification" and config.token_classification_bias:
            tensors[SCORE_BIAS] = (config.num_labels,)
    elif config.task == "text-generation" and not config.tie_word_embeddings:
        tensors[HEAD] = embedding
    return tensors


def _full_names(tensors: Mapping[str, TensorInfo]) -> Mapping[str, TensorInfo]:
    """``tensors`` by their names in the other classes, where they are HeliumModel's, whose names lack ``model.``."""
    prefix = "model."
    if EMBEDDING in tensors or EMBEDDING.removeprefix(prefix) not in tensors:
        return tensors
    return {prefix + name: info for name, info in tensors.items()}


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
        raise error(f"{folder}: the file {short(name)}{by} cannot be found", found=problem, remedy=AGAIN) from problem
    if not there:
        raise error(f"{folder}: the file {short(name)}{by} is missing", expected="a regular file", remedy=AGAIN)
    return folder / name


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name to shard, as the index says; the shards' names are still to be distrusted."""
    try:
        if path.stat().st_size > MAX_HEADER:
            raise ValueError(f"more than {MAX_HEADER:,} bytes")
        weight_map = json_object(path.read_bytes()).get("weight_map")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read", found=error, expected="a JSON object", remedy=AGAIN) from error
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        expected = "an object: tensor name to file name"
        raise WeightsError(
            f"{path}: weight_map cannot be used", found=short(weight_map), expected=expected, remedy=AGAIN
        )
    return weight_map


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


def _first(names: list[str], what: str) -> str:
    return f"{len(names)} {what}: {', '.join(map(short, names[:5]))}{' ...' if len(names) > 5 else ''}"
