"""A PEFT folder, held against the model that it adapts: which weights it changes, and by what."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from helium_onnx.adapters.base import Base
from helium_onnx.adapters.config import CONFIG_FILE, AdapterConfig, names_of
from helium_onnx.config_fields import short
from helium_onnx.errors import AdapterError
from helium_onnx.safetensors_file import TensorInfo, fill, opened, read_header, readable

WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
#: Endings of the tensors that belong to a low-rank update, in peft's names: linear layers, then the embedding.
_ENDINGS = {"lora_A.weight": "A", "lora_B.weight": "B", "lora_embedding_A": "A", "lora_embedding_B": "B"}
#: The heads of classifiers, which a base model need not have.
_HEADS = ("score.weight", "score.bias")
_SAME_BASE = "pass the checkpoint that the adapter was trained on"


@dataclass(frozen=True)
class LowRank:
    """An update of one weight ``[rows, columns]``: ``scale`` times the product of two thin matrices.

    ``module`` is the module's name in peft. For a linear layer ``a`` is ``[rank, columns]`` and ``b`` ``[rows, rank]``;
    for the embedding (``of_embedding``) ``a`` is ``[rank, rows]`` and ``b`` ``[columns, rank]``.
    """

    module: str
    a: TensorInfo
    b: TensorInfo
    rank: int
    scale: float

    @property
    def of_embedding(self) -> bool:
        return self.a.name.endswith("lora_embedding_A")

    def factors(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """float32 ``[rows, rank]``, scale included, and ``[rank, columns]``, whose product is the update.

        Raises WeightsError: truncated, or not finite.
        """
        a, b = _read(self.a), _read(self.b)
        left, right = (a.T, b.T) if self.of_embedding else (b, a)
        return np.ascontiguousarray(left * np.float32(self.scale)), np.ascontiguousarray(right)


class PeftFolder:
    """adapter_config.json and adapter_model.safetensors, checked. Make it by ``PeftFolder.open``.

    ``updates`` are the low-rank updates by the checkpoint's tensor names; ``replaced`` the tensors that the adapter
    holds whole (``modules_to_save``, as a classifier's head), likewise.
    """

    def __init__(
        self,
        folder: Path,
        config: AdapterConfig,
        updates: Mapping[str, LowRank],
        replaced: Mapping[str, TensorInfo],
    ) -> None:
        self.folder, self.config = folder, config
        self.updates = MappingProxyType(dict(updates))
        self.replaced = MappingProxyType(dict(replaced))

    @classmethod
    def open(cls, folder: Path, base: Base) -> PeftFolder:
        """Read config and header, and hold them against ``base``; no weight is read.

        Raises:
            AdapterError: no such folder, no LoRA adapter, one that is not built, or one of another model.
            WeightsError: the safetensors file is unsound.
        """
        _check_folder(folder)
        config = AdapterConfig.from_file(folder / CONFIG_FILE)
        tensors = read_header(folder / WEIGHTS_FILE)
        return _Matcher(folder, config, base).match(tensors)

    def source_files(self) -> list[Path]:
        """What the adapter is: what to digest."""
        return [self.folder / CONFIG_FILE, self.folder / WEIGHTS_FILE]


def _read(info: TensorInfo) -> NDArray[np.float32]:
    out = np.empty(math.prod(info.shape), np.float32)
    with opened(info.file) as fd:
        fill(fd, info, 0, out)
    return out.reshape(info.shape)


def _check_folder(folder: Path) -> None:
    try:
        names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else None
    except OSError as error:
        raise AdapterError(f"{folder} cannot be listed", found=error, remedy="check its permissions") from error
    expected = f"a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, as peft's save_pretrained writes it"
    if names is None:
        found = "a file" if folder.exists() else "nothing"
        raise AdapterError(
            f"{folder} is no adapter", found=found, expected=expected, remedy="pass the adapter's folder"
        )
    if CONFIG_FILE in names and WEIGHTS_FILE in names:
        return
    pickled = [name for name in names if name.startswith("adapter_model.") and name.endswith((".bin", ".pt"))]
    if CONFIG_FILE in names and pickled:
        raise AdapterError(
            f"{folder} holds no safetensors weights",
            found=f"{pickled[0]} (pickled: reading it would run its code)",
            expected=WEIGHTS_FILE,
            remedy="load it with peft where you trust it, and save it again: save_pretrained writes safetensors",
        )
    found = "a checkpoint" if "config.json" in names else ", ".join(map(short, names[:5])) or "an empty folder"
    if nested := [name for name in names if (folder / name / CONFIG_FILE).is_file()]:
        found, remedy = f"adapters inside it: {', '.join(nested[:5])}", f"pass one of them, as {folder / nested[0]}"
    else:
        remedy = "pass the adapter's folder, and the base model's as the checkpoint"
    raise AdapterError(f"{folder} is no adapter", found=found, expected=expected, remedy=remedy)


class _Matcher:
    """Finds for each of an adapter's tensors the weight that it belongs to."""

    def __init__(self, folder: Path, config: AdapterConfig, base: Base) -> None:
        self.folder, self.config, self.base = folder, config, base
        self.path = folder / WEIGHTS_FILE

    def match(self, tensors: Mapping[str, TensorInfo]) -> PeftFolder:
        halves: dict[str, dict[str, TensorInfo]] = {}
        replaced: dict[str, TensorInfo] = {}
        for name, info in tensors.items():
            readable(info)
            module, ending = self._split(name)
            if half := _ENDINGS.get(ending):
                halves.setdefault(module, {})[half] = info
            elif ending in ("weight", "bias", "base_layer.weight"):
                tensor = self._weight(module, ending.removeprefix("base_layer."))
                replaced[tensor] = self._whole(tensor, module, info)
            else:
                raise self._foreign(name, "DoRA is not built" if "magnitude" in ending else "only LoRA is built")
        updates = {self._weight(module, "weight"): self._update(module, pair) for module, pair in halves.items()}
        self._check_tied({*updates, *replaced})
        self._check_complete(set(halves))
        held = {tensor.rpartition(".")[0] for tensor in replaced}
        if lacking := [name for name in self.config.modules_to_save if not any(m.endswith(name) for m in held)]:
            heads = {"classifier", "score"}  # of which peft names both, and a model has one
            if not (set(lacking) <= heads and "score" in held):
                raise self._refused("modules_to_save is not there", names_of(lacking), "each in the file, whole")
        return PeftFolder(self.folder, self.config, updates, replaced)

    def _split(self, name: str) -> tuple[str, str]:
        """A tensor's module in peft, and the rest of its name."""
        if not name.startswith(_PREFIX):
            raise self._foreign(name, f"names that begin with {_PREFIX}")
        rest = name.removeprefix(_PREFIX)
        for ending in (*_ENDINGS, "base_layer.weight"):
            if rest.endswith(f".{ending}"):
                return rest.removesuffix(f".{ending}"), ending
        module, _, ending = rest.partition(".lora_")
        if ending:
            return module, f"lora_{ending}"
        module, _, ending = rest.rpartition(".")
        return module, ending

    def _weight(self, module: str, kind: str) -> str:
        """The checkpoint's name of a module's weight. A model without a head has no ``model.`` before its layers."""
        candidates = (f"{module}.{kind}", f"model.{module}.{kind}")
        for name in candidates:
            if name in self.base.shapes or name in _HEADS:
                return name
        raise self._refused(
            f"the base model has no {short(module)}",
            f"{len(self.base.shapes)} other tensors in {self.base.name}",
            f"{short(candidates[0])} among them",
        )

    def _whole(self, tensor: str, module: str, info: TensorInfo) -> TensorInfo:
        saved = self.config.saves(module)
        at_the_ends = tensor in ("model.embed_tokens.weight", "lm_head.weight")  # save_embedding_layers
        if not saved and not at_the_ends:
            raise self._foreign(info.name, "whole weights of modules_to_save alone")
        base, hidden = self.base.shapes.get(tensor), self.base.hidden_size
        if tensor in _HEADS:
            fits = len(info.shape) == 2 and info.shape[1] == hidden if tensor == _HEADS[0] else len(info.shape) == 1
            wanted = f"[labels, {hidden}]" if tensor == _HEADS[0] else "[labels]"
        else:
            assert base is not None
            fits, wanted = info.shape == base, str(list(base))
        if not fits:
            what = "another vocabulary than the base model" if at_the_ends else "another shape than the base model's"
            raise self._refused(f"{tensor} of the adapter has {what}", str(list(info.shape)), wanted)
        return info

    def _update(self, module: str, pair: Mapping[str, TensorInfo]) -> LowRank:
        if len(pair) != 2:
            (info,) = pair.values()
            raise self._refused(f"{short(module)} has one half of its matrices", short(info.name), "lora_A and lora_B")
        a, b = pair["A"], pair["B"]
        base = self.base.shapes.get(self._weight(module, "weight"))
        if base is None or len(base) != 2:
            found = "no such weight" if base is None else str(list(base))
            raise self._refused(f"{short(module)} is no linear layer of the base model", found, "a matrix")
        rank, (rows, columns) = self.config.rank(module), base
        embedding = a.name.endswith("lora_embedding_A")
        if embedding != module.endswith("embed_tokens"):
            raise self._foreign(a.name, "lora_embedding matrices for the embedding alone")
        shapes = ((rank, rows), (columns, rank)) if embedding else ((rank, columns), (rows, rank))
        for info, shape in zip((a, b), shapes, strict=True):
            if info.shape != shape:
                raise self._refused(
                    f"{info.name} does not fit the base model, or {CONFIG_FILE}",
                    str(list(info.shape)),
                    f"{list(shape)}: rank {rank} beside a weight of {list(base)}",
                )
        return LowRank(module, a, b, rank, self.config.scale(module))

    def _check_tied(self, changed: set[str]) -> None:
        ends = sorted(changed & {"model.embed_tokens.weight", "lm_head.weight"})
        if ends and self.base.tied:
            raise self._refused(
                "the adapter changes a matrix that embedding and head share",
                ", ".join(ends),
                "a base model with a head of its own (tie_word_embeddings: false)",
                "train the adapter on the layers alone: merged into one of the two, it would change both",
            )

    def _check_complete(self, modules: set[str]) -> None:
        """The matrices are those that the config asks for: peft passes others over, and leaves absent ones out."""
        if extra := {module for module in modules if not self.config.targets(module)}:
            raise self._refused(
                f"{CONFIG_FILE} does not ask for some of the matrices, which peft would ignore",
                names_of(extra),
                "matrices for the modules of target_modules alone",
                "save the adapter again with peft",
            )
        missing = {module for module in self._linear_modules(modules) if self.config.targets(module)} - modules
        if missing or not modules:
            raise self._refused(
                "matrices are missing that target_modules asks for",
                names_of(missing) or "no lora_A and lora_B at all",
                "lora_A and lora_B for each module",
                "save the adapter again with peft, all of it (under FSDP or ZeRO: gathered first)",
            )

    def _linear_modules(self, modules: set[str]) -> Iterator[str]:
        """The base model's modules that peft can put matrices beside, as the adapter spells them."""
        bare = any(module.startswith(("layers.", "embed_tokens")) for module in modules)
        for name, shape in self.base.shapes.items():
            if len(shape) == 2 and name.endswith(".weight") and not name.startswith("score."):
                module = name.removesuffix(".weight")
                yield module.removeprefix("model.") if bare else module

    def _foreign(self, name: str, expected: str) -> AdapterError:
        return self._refused(
            "a tensor has no place in a LoRA adapter of Helium",
            short(name),
            expected,
            "merge the adapter with peft (merge_and_unload) and export the merged checkpoint",
        )

    def _refused(self, what: str, found: str, expected: str, remedy: str = _SAME_BASE) -> AdapterError:
        return AdapterError(f"{self.path}: {what}", found=found, expected=expected, remedy=remedy)
