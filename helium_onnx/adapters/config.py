"""adapter_config.json of a PEFT folder: read strictly, so that no option that changes the arithmetic is passed over.

Field names and meanings: peft 0.21.2, ``tuners/lora/config.py``; how modules are matched: ``tuners/tuners_utils.py``
(``check_target_module_exists``) and ``utils/other.py`` (``get_pattern_key``).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helium_onnx import strict_json
from helium_onnx.config_fields import short
from helium_onnx.errors import AdapterError

CONFIG_FILE = "adapter_config.json"
_LARGEST_FILE = 16 << 20
_MERGE_FIRST = "merge it with peft (merge_and_unload) and export the merged checkpoint"

#: Fields that change what the adapter computes, and what they mean; each has to be null, false or empty.
_NOT_BUILT = {
    "use_dora": "DoRA: a magnitude vector beside the low-rank matrices",
    "lora_bias": "a bias behind the low-rank matrices",
    "use_qalora": "QALoRA: pooled inputs",
    "use_bdlora": "BD-LoRA: block-diagonal matrices",
    "alora_invocation_tokens": "activated LoRA: an adapter that only some tokens see",
    "arrow_config": "Arrow: several adapters and a router",
    "kasa_config": "KaSA: singular values between the matrices, and other base weights",
    "monteclora_config": "MonteCLoRA: random matrices",
    "layer_replication": "layers that are there more than once",
    "trainable_token_indices": "single rows of the embedding that were trained",
    "target_parameters": "matrices that belong to no linear layer",
    "megatron_config": "layers of Megatron",
    "ensure_weight_tying": "matrices that embedding and head share",
}
#: Fields that say how the adapter was trained, stored or found, or are read below: any value does.
_HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "fan_in_fan_out", "inference_mode",
    "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "velora_config",
}  # fmt: skip
_READ = {
    "peft_type", "task_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias",
    "init_lora_weights", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "modules_to_save",
}  # fmt: skip
#: How the matrices began, where that leaves the base weights alone. Others (pissa, olora, corda, loftq, lora_ga) take
#: something out of them, which peft does again at every load.
_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal", "mica")
TASK_TYPES = ("CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", "FEATURE_EXTRACTION")


@dataclass(frozen=True)
class AdapterConfig:
    """What of adapter_config.json decides the arithmetic. Module names are those of the base model in peft.

    ``task_type`` is one of ``TASK_TYPES``, or None where the file does not say.
    """

    task_type: str | None
    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: str | tuple[str, ...]
    exclude_modules: str | tuple[str, ...]
    layers_to_transform: tuple[int, ...]
    layers_pattern: tuple[str, ...]
    modules_to_save: tuple[str, ...]

    @classmethod
    def from_file(cls, path: Path) -> AdapterConfig:
        """Raises AdapterError: no file, not JSON, or a field that cannot be used; it names the field."""
        try:
            if path.stat().st_size > _LARGEST_FILE:
                raise ValueError(f"more than {_LARGEST_FILE:,} bytes")
            data, flaws = strict_json.parse(path.read_bytes().decode())
            if flaws or not isinstance(data, dict):
                raise ValueError("; ".join(flaws) or f"{short(data)}, not an object")
        except (OSError, ValueError) as error:
            raise AdapterError(
                f"{path} cannot be read", found=error, expected="a JSON object, as peft's save_pretrained writes it"
            ) from error
        return _Reader(path, data).config()

    def rank(self, module: str) -> int:
        """The rank of one module's matrices."""
        return int(_by_pattern(self.rank_pattern, module, self.r))

    def scale(self, module: str) -> float:
        """What the product of one module's matrices is multiplied by."""
        rank, alpha = self.rank(module), _by_pattern(self.alpha_pattern, module, self.lora_alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def saves(self, module: str) -> bool:
        """Whether the module's whole weight is part of the adapter: ``norm`` names ``input_layernorm``, too."""
        return any(module.endswith(name) for name in self.modules_to_save)

    def targets(self, module: str) -> bool:
        """Whether peft puts low-rank matrices beside the weight of ``module``."""
        saved = any(re.match(rf"(^|.*\.){re.escape(name)}($|\..*)", module) for name in self.modules_to_save)
        if saved or _named(self.exclude_modules, module):
            return False
        if isinstance(self.target_modules, str):
            if self.target_modules.lower() == "all-linear":
                return module.rpartition(".")[2].endswith("_proj")
            return re.fullmatch(self.target_modules, module) is not None
        if not _named(self.target_modules, module):
            return False
        if not self.layers_to_transform:
            return True
        patterns = [rf"(?:^|.*?\.){name}\.(\d+)\." for name in self.layers_pattern] or [r".*?\.[^.]*\.(\d+)\."]
        match = next((found for pattern in patterns if (found := re.match(pattern, module))), None)
        return match is not None and int(match[1]) in self.layers_to_transform


def _by_pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    """The value of the first pattern that matches the module's name or its end."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _named(names: str | tuple[str, ...], module: str) -> bool:
    if isinstance(names, str):
        return bool(names) and re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


class _Reader:
    """The fields of one file, each checked; every method raises an AdapterError that names its field."""

    def __init__(self, path: Path, data: dict[str, Any]) -> None:
        self.path, self.data = path, data

    def config(self) -> AdapterConfig:
        if self.data.get("peft_type") != "LORA":
            remedy = "merge it with peft, if it can be merged, and export the merged checkpoint"
            raise self.refused("peft_type", '"LORA": other methods are not built', remedy)
        self._check_nothing_else()
        task = self.data.get("task_type")
        if task is not None and task not in TASK_TYPES:
            raise self.refused("task_type", f"one of {', '.join(TASK_TYPES)}, or null", "name the base model's task")
        targets = self._names("target_modules", regex=True)
        if not targets:
            raise self.refused("target_modules", "the modules that the adapter changes")
        layers = self.data.get("layers_to_transform")
        layers = [layers] if type(layers) is int else [] if layers is None else layers
        if not isinstance(layers, list) or not all(type(index) is int and index >= 0 for index in layers):
            raise self.refused("layers_to_transform", "an index or a list of them, from 0")
        if layers and isinstance(targets, str):
            raise self.refused("layers_to_transform", "nothing beside target_modules that is one pattern")
        pattern = self._names("layers_pattern", regex=True)
        saved = self._names("modules_to_save")
        assert not isinstance(saved, str)
        return AdapterConfig(
            task_type=task,
            r=int(self._number("r", self.data.get("r"), whole=True)),
            lora_alpha=self._number("lora_alpha", self.data.get("lora_alpha", 8)),
            use_rslora=bool(self._of("use_rslora", (True, False, None))),
            rank_pattern={k: int(v) for k, v in self._pattern("rank_pattern", whole=True).items()},
            alpha_pattern=self._pattern("alpha_pattern"),
            target_modules=targets,
            exclude_modules=self._names("exclude_modules", regex=True),
            layers_to_transform=tuple(layers),
            layers_pattern=(pattern,) if isinstance(pattern, str) else pattern,
            modules_to_save=saved,
        )

    def refused(self, name: str, expected: str, remedy: str = _MERGE_FIRST, found: object = None) -> AdapterError:
        value = self.data.get(name) if found is None else found
        return AdapterError(f"{self.path}: {name} cannot be used", found=short(value), expected=expected, remedy=remedy)

    def _check_nothing_else(self) -> None:
        """Nothing that is not built, and nothing of a newer peft that may be something."""
        for name, meaning in _NOT_BUILT.items():
            if self.data.get(name):
                raise self.refused(name, f"nothing (helium-onnx does not build {meaning})")
        self._of("bias", ("none", None))
        self._of("init_lora_weights", (*_INITIALISATIONS, None))
        known = {*_NOT_BUILT, *_HARMLESS, *_READ}
        if unknown := sorted(name for name, value in self.data.items() if name not in known and value):
            raise self.refused(unknown[0], "nothing: it may change what the adapter computes")

    def _of(self, name: str, allowed: tuple[object, ...]) -> object:
        value = self.data.get(name)
        if not any(type(value) is type(one) and value == one for one in allowed):
            listed = " or ".join(json.dumps(one) for one in allowed if one is not None)
            remedy = _MERGE_FIRST
            if name == "init_lora_weights":
                remedy = "save it with peft's path_initial_model_for_weight_conversion, or " + _MERGE_FIRST
            raise self.refused(name, listed, remedy)
        return value

    def _number(self, name: str, value: object, *, whole: bool = False) -> float:
        kinds = int if whole else int | float
        if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value <= 1_000_000:
            kind = "an integer" if whole else "a number"
            raise self.refused(name, f"{kind} above 0, at most 1,000,000", "save the adapter again with peft", value)
        return value

    def _pattern(self, name: str, *, whole: bool = False) -> dict[str, float]:
        value = self.data.get(name) or {}
        if not isinstance(value, dict):
            raise self.refused(name, "an object: module name or pattern to number")
        for key in value:
            self._check_pattern(name, key)
        return {key: self._number(f"{name}.{key}", number, whole=whole) for key, number in value.items()}

    def _names(self, name: str, *, regex: bool = False) -> str | tuple[str, ...]:
        value = self.data.get(name)
        if regex and isinstance(value, str):
            self._check_pattern(name, value)
            return value
        listed = [] if value is None else value
        if not isinstance(listed, list) or not all(isinstance(one, str) and one for one in listed):
            raise self.refused(name, "a list of module names" + (", or one pattern" if regex else ""))
        for one in listed if name == "layers_pattern" else ():
            self._check_pattern(name, one)
        return tuple(listed)

    def _check_pattern(self, name: str, pattern: str) -> None:
        try:
            if len(pattern) > 4096:
                raise ValueError("a pattern of more than 4096 characters")
            re.compile(pattern)
        except (re.error, ValueError, OverflowError, RecursionError) as error:
            raise self.refused(name, "a regular expression", found=f"{short(pattern)}: {error}") from error


def names_of(modules: Iterable[str]) -> str:
    """Some module names for a message: all of a few, or the first of many."""
    listed = sorted(modules)
    return ", ".join(short(name) for name in listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
