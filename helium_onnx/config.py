"""The model's config: Hugging Face's config.json, read strictly and under its own names.

Everything is checked here, before a byte is allocated for it: what is later computed from a ``HeliumConfig`` need not
ask again whether sizes are positive or heads divide. Two architectures carry the name Helium: ``model_type: helium``
(kyutai/helium-1-preview-2b) and ``model_type: llama`` (kyutai/helium-1-2b). They differ in RoPE's pairing, in the
order of RMSNorm's last two operations and in their defaults. Only ``json`` is imported: a runtime reads a config from
a bundle's manifest without torch.
"""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, cast

from helium_onnx import strict_json
from helium_onnx.errors import ConfigError

ModelType: TypeAlias = Literal["helium", "llama"]

#: Inclusive limits of the integer fields. The largest Helium has 64000 / 2560 / 8192 / 28 / 20 / 20 / 128 / 4096.
RANGES: dict[str, tuple[int, int]] = {
    "vocab_size": (4, 1_048_576),
    "hidden_size": (8, 65_536),
    "intermediate_size": (8, 1_048_576),
    "num_hidden_layers": (1, 1_024),
    "num_attention_heads": (1, 4_096),
    "num_key_value_heads": (1, 4_096),
    "head_dim": (2, 65_536),
    "max_position_embeddings": (1, 1_048_576),
}
MAX_PARAMETERS = 100_000_000_000
DTYPES = ("bfloat16", "float16", "float32")

#: A config is about 1 KB; what is larger than this is some other file.
_MAX_BYTES = 1 << 20
_REMEDY = "correct the field in config.json, or take the file as its authors published it"
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120


@dataclass(frozen=True)
class _Defaults:
    """What transformers takes where config.json says nothing (configuration_helium.py, configuration_llama.py)."""

    num_key_value_heads: int | None  # None: as many as num_attention_heads
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    pad_token_id: int | None
    bos_token_id: int = 1
    eos_token_id: int = 2


_DEFAULTS: dict[ModelType, _Defaults] = {
    "helium": _Defaults(20, 4096, 1e-8, 100_000.0, 3),
    "llama": _Defaults(None, 2048, 1e-6, 10_000.0, None),
}

#: Fields that would change the arithmetic: the values under which they do not, and what else they would mean.
_NOT_BUILT: dict[str, tuple[tuple[object, ...], str]] = {
    "hidden_act": ((None, "silu"), "another activation of the MLP"),
    "attention_bias": ((None, False), "biases on the attention's projections"),
    "mlp_bias": ((None, False), "biases on the MLP's projections"),
    "rope_scaling": ((None,), "scaled RoPE"),
    "sliding_window": ((None,), "attention over a window"),
    "pretraining_tp": ((None, 1), "matrix products split as in training"),
    "quantization_config": ((None,), "weights that are quantized already"),
}


@dataclass(frozen=True)
class HeliumConfig:
    """A model's sizes and constants, in Hugging Face's names. Make it by ``from_file`` or ``from_dict``, which check.

    ``eos_token_ids`` holds ``eos_token_id``, which config.json spells as an int, a list or null. ``dtype`` is the
    checkpoint's own (``bfloat16``, ``float16``, ``float32``) or None where the file is silent.
    """

    model_type: ModelType
    architectures: tuple[str, ...]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: str
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    dtype: str | None

    @classmethod
    def from_file(cls, path: Path) -> HeliumConfig:
        """Read config.json at ``path``. Raises ConfigError, naming the file, the field and the remedy."""
        try:
            if not path.is_file():
                raise ConfigError(
                    f"{path} is missing",
                    expected="the checkpoint's config.json",
                    remedy="pass the folder that holds config.json, tokenizer.json and the .safetensors files",
                )
            if (size := path.stat().st_size) > _MAX_BYTES:
                raise ConfigError(
                    f"{path} is too large for a config",
                    found=f"{size:,} bytes",
                    expected=f"at most {_MAX_BYTES:,}",
                    remedy="check that the file is the checkpoint's config.json",
                )
            data, flaws = strict_json.parse(path.read_bytes().decode())
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error
        config = cls.from_dict(data, source=str(path))  # first, since it names the field that is NaN
        if flaws:
            raise _unreadable(path, "; ".join(flaws))
        return config

    @classmethod
    def from_dict(cls, data: Mapping[str, object], *, source: str) -> HeliumConfig:
        """Check ``data``, a parsed config.json or what ``to_dict`` gave; ``source`` names it in a ConfigError.

        The five sizes must be given. Other absent fields take transformers' defaults for the model type, except
        ``head_dim``, which is hidden_size / num_attention_heads in both (transformers' constant 128 for Helium is the
        same in every published one, and could not run anywhere else).
        """
        fields = _Fields(data, source)
        model_type = fields.model_type()
        defaults = _DEFAULTS[model_type]
        for name, (allowed, meaning) in _NOT_BUILT.items():
            fields.only(name, allowed, meaning)
        hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
        vocab = fields.integer("vocab_size")
        config = cls(
            model_type=model_type,
            architectures=fields.architectures(),
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=fields.integer("intermediate_size"),
            num_hidden_layers=fields.integer("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=fields.integer("num_key_value_heads", defaults.num_key_value_heads or heads),
            head_dim=fields.integer("head_dim", hidden // heads),
            hidden_act="silu",
            max_position_embeddings=fields.integer("max_position_embeddings", defaults.max_position_embeddings),
            rms_norm_eps=fields.number("rms_norm_eps", fields.get("rms_norm_eps", defaults.rms_norm_eps), 0.0, 1e-2),
            rope_theta=fields.rope_theta(defaults.rope_theta),
            tie_word_embeddings=fields.boolean("tie_word_embeddings", default=False),
            bos_token_id=fields.token("bos_token_id", defaults.bos_token_id, vocab),
            eos_token_ids=fields.eos_token_ids(defaults.eos_token_id, vocab),
            pad_token_id=fields.token("pad_token_id", defaults.pad_token_id, vocab),
            dtype=fields.dtype(),
        )
        fields.check_relations(config)
        return config

    def to_dict(self) -> dict[str, object]:
        """The same as JSON, in config.json's form: ``from_dict(config.to_dict(), source=...) == config``."""
        fields: dict[str, object] = {**vars(self), "architectures": list(self.architectures)}
        eos = fields.pop("eos_token_ids")
        assert isinstance(eos, tuple)
        fields["eos_token_id"] = eos[0] if len(eos) == 1 else list(eos) or None
        fields["rope_parameters"] = {"rope_theta": fields.pop("rope_theta"), "rope_type": "default"}
        return fields

    @property
    def rope_interleaved(self) -> bool:
        """RoPE rotates pairs x[0::2], x[1::2] (modeling_helium.py), or else the two halves (modeling_llama.py)."""
        return self.model_type == "helium"

    @property
    def num_parameters(self) -> int:
        """Weights of the causal language model, embeddings included; a tied head is counted once."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_attention_heads + self.num_key_value_heads)
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * layer + self.hidden_size


class _Fields:
    """The fields of one config.json; every method checks one and raises a ConfigError that names it."""

    def __init__(self, data: Mapping[str, object], source: str) -> None:
        self.source = source
        if not isinstance(data, Mapping):
            raise self.refused("the config", data, "a JSON object", "take the file as its authors published it")
        self.data = data

    def refused(self, name: str, found: object, expected: str, remedy: str = _REMEDY) -> ConfigError:
        return ConfigError(
            f"{self.source}: {name} cannot be used", found=short(found), expected=expected, remedy=remedy
        )

    def get(self, name: str, default: object) -> object:
        """The field, or ``default`` where it is absent or null."""
        value = self.data.get(name)
        return default if value is None else value

    def model_type(self) -> ModelType:
        value = self.data.get("model_type")
        if isinstance(value, str) and value in _DEFAULTS:
            return value
        expected = "'helium' or 'llama', the two architectures that Kyutai publishes as Helium"
        remedy = (
            "pass a Helium checkpoint; mistral, gemma, qwen2 and the like are no Helium: export them with optimum-onnx"
        )
        raise self.refused("model_type", value, expected, remedy)

    def only(self, name: str, allowed: tuple[object, ...], meaning: str) -> None:
        value = self.data.get(name)
        # The type is compared too: in Python 0 == False and 1 == True.
        if not any(type(value) is type(one) and value == one for one in allowed):
            expected = " or ".join(json.dumps(one) for one in allowed)
            raise self.refused(name, value, f"{expected} (helium-onnx does not build {meaning})")

    def integer(self, name: str, default: int | None = None) -> int:
        low, high = RANGES[name]
        value = self.get(name, default)
        if type(value) is not int or not low <= value <= high:
            raise self.refused(name, value, f"an integer from {low:,} to {high:,}")
        return value

    def number(self, name: str, value: object, above: float, most: float) -> float:
        # An int may be too large for a float, so it is compared before it is converted. NaN fails every comparison.
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= most:
            raise self.refused(name, value, f"a finite number above {above:g}, at most {most:g}")
        return float(value)

    def boolean(self, name: str, *, default: bool) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.refused(name, value, "true or false")
        return value

    def architectures(self) -> tuple[str, ...]:
        value = self.get("architectures", ())
        if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
            raise self.refused("architectures", value, 'a list of class names, such as ["HeliumForCausalLM"]')
        return tuple(value)

    def rope_theta(self, default: float) -> float:
        """Theta from ``rope_parameters`` (transformers 5) or the top level (before); both may stand there, if equal."""
        nested = self.get("rope_parameters", {})
        if not isinstance(nested, Mapping):
            raise self.refused("rope_parameters", nested, "an object with rope_theta and rope_type")
        for name in ("rope_type", "type"):
            if (kind := nested.get(name, "default")) != "default":
                raise self.refused(f"rope_parameters.{name}", kind, "'default' (helium-onnx builds plain RoPE only)")
        if extra := [name for name in nested if name not in ("rope_theta", "rope_type", "type")]:
            raise self.refused("rope_parameters", extra, "rope_theta and rope_type, and no field of scaled RoPE")
        given = [data["rope_theta"] for data in (self.data, nested) if data.get("rope_theta") is not None]
        thetas = [self.number("rope_theta", value, 1.0, sys.float_info.max) for value in given] or [default]
        if len(set(thetas)) > 1:
            expected = "the same value at the top level and in rope_parameters"
            raise self.refused("rope_theta", thetas, expected, "keep the one that the model was trained with")
        return thetas[0]

    def token(self, name: str, default: int | None, vocab_size: int) -> int | None:
        """A token's id; None where the field is null (an absent one takes the default)."""
        value = self.data.get(name, default)
        return None if value is None else self._id(name, value, vocab_size)

    def eos_token_ids(self, default: int, vocab_size: int) -> tuple[int, ...]:
        value = self.data.get("eos_token_id", default)
        listed = value if isinstance(value, list | tuple) else [] if value is None else [value]
        return tuple(self._id("eos_token_id", one, vocab_size) for one in listed)

    def _id(self, name: str, value: object, vocab_size: int) -> int:
        if type(value) is not int or not 0 <= value < vocab_size:
            raise self.refused(name, value, f"a token id from 0 to vocab_size - 1 = {vocab_size - 1}, or null")
        return value

    def dtype(self) -> str | None:
        """``dtype`` (transformers 5) or ``torch_dtype`` (before)."""
        given = [value for name in ("dtype", "torch_dtype") if (value := self.data.get(name)) is not None]
        if any(value not in DTYPES for value in given) or given[1:] not in ([], given[:1]):
            raise self.refused(
                "dtype", given, f"one of {', '.join(DTYPES)}, and torch_dtype the same if it is there too"
            )
        return cast(str, given[0]) if given else None

    def check_relations(self, config: HeliumConfig) -> None:
        heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        if head_dim % 2:
            raise self.refused("head_dim", head_dim, "an even number: RoPE rotates pairs")
        if heads * head_dim != config.hidden_size:
            # o_proj is Linear(hidden_size, hidden_size) in HeliumAttention.
            expected = f"num_attention_heads {heads} x head_dim to equal hidden_size {config.hidden_size}"
            raise self.refused("head_dim", head_dim, expected)
        if heads % kv_heads:
            raise self.refused("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads {heads}")
        if config.num_parameters > MAX_PARAMETERS:
            expected = f"at most {MAX_PARAMETERS:,}, a bound of sanity"
            raise self.refused("the number of parameters that the sizes make", config.num_parameters, expected)


def _unreadable(path: Path, found: object) -> ConfigError:
    return ConfigError(
        f"{path} cannot be read",
        found=found,
        expected="a JSON object in UTF-8, each key once, without NaN or Infinity",
        remedy="take the file as its authors published it",
    )


def short(value: object) -> str:
    """``value`` for an error message: escaped, bounded in length, safe for any object."""
    try:
        return "nothing" if value is None else _REPR.repr(value)
    except ValueError:  # an int of more than 4300 digits has no decimal text in Python 3.11
        return f"a {type(value).__name__} too long to print"
