"""The fields of a config.json, one by one: type, range, and an error that names the field."""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Mapping
from typing import Literal, TypeAlias, cast, get_args

from helium_onnx.errors import ConfigError

ModelType: TypeAlias = Literal["helium", "llama"]
MODEL_TYPES: tuple[str, ...] = get_args(ModelType)
ProblemType: TypeAlias = Literal["single_label_classification", "multi_label_classification", "regression"]

#: Names of labels beyond this are some other list.
MAX_LABELS = 100_000

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
DTYPES = ("bfloat16", "float16", "float32")

_REMEDY = "correct the field in config.json, or take the file as its authors published it"
_NO_HELIUM = "pass a Helium checkpoint; mistral, gemma, qwen2 and the like are no Helium: export them with optimum-onnx"
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120


class Fields:
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
        if isinstance(value, str) and value in MODEL_TYPES:
            return cast(ModelType, value)
        expected = "'helium' or 'llama', the two architectures that Kyutai publishes as Helium"
        raise self.refused("model_type", value, expected, _NO_HELIUM)

    def only(self, name: str, allowed: tuple[object, ...], meaning: str, remedy: str) -> None:
        value = self.data.get(name)
        # The type is compared too: in Python 0 == False and 1 == True.
        if not any(type(value) is type(one) and value == one for one in allowed):
            expected = " or ".join(json.dumps(one) for one in allowed)
            raise self.refused(name, value, f"{expected} (helium-onnx does not build {meaning})", remedy)

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
        # transformers goes by model_type alone. A class of another family beside it says that somebody changed that.
        if foreign := [name for name in value if not name.startswith(("Helium", "Llama"))]:
            expected = "classes of Helium or Llama, such as HeliumForCausalLM, as model_type says"
            raise self.refused("architectures", foreign, expected, _NO_HELIUM)
        return tuple(value)

    def rope_theta(self, default: float) -> float:
        """Theta from ``rope_parameters`` (transformers 5) or the top level (before); both may stand there, if equal."""
        nested = self.get("rope_parameters", {})
        if not isinstance(nested, Mapping):
            raise self.refused("rope_parameters", nested, "an object with rope_theta and rope_type")
        for name in ("rope_type", "type"):
            if (kind := nested.get(name, "default")) != "default":
                expected = "'default' (helium-onnx builds plain RoPE only)"
                raise self.refused(f"rope_parameters.{name}", kind, expected, _NO_HELIUM)
        if extra := [name for name in nested if name not in ("rope_theta", "rope_type", "type")]:
            expected = "rope_theta and rope_type, and no field of scaled RoPE"
            raise self.refused("rope_parameters", extra, expected, _NO_HELIUM)
        given = [data["rope_theta"] for data in (self.data, nested) if data.get("rope_theta") is not None]
        thetas = [self.number("rope_theta", value, 1.0, sys.float_info.max) for value in given] or [default]
        if len(set(thetas)) > 1:
            expected = "the same value at the top level and in rope_parameters"
            raise self.refused("rope_theta", thetas, expected, "keep the one that the model was trained with")
        return thetas[0]

    def id2label(self) -> tuple[str, ...]:
        """Labels in the order of their ids, from ``id2label`` or, named as transformers does, from ``num_labels``."""
        value = self.data.get("id2label")
        if value is None:
            count = self.get("num_labels", 0)
            if type(count) is not int or not 0 <= count <= MAX_LABELS:
                raise self.refused("num_labels", count, f"an integer from 0 to {MAX_LABELS:,}")
            return tuple(f"LABEL_{i}" for i in range(count))
        expected = 'an object of names by ids from 0 on: {"0": "de", "1": "en"}'
        if not isinstance(value, Mapping) or len(value) > MAX_LABELS:
            raise self.refused("id2label", value, expected)
        labels = [value.get(str(i), value.get(i)) for i in range(len(value))]
        if not all(isinstance(label, str) and label for label in labels):
            raise self.refused("id2label", value, expected)
        return tuple(map(str, labels))

    def problem_type(self) -> ProblemType | None:
        value = self.data.get("problem_type")
        for known in get_args(ProblemType):
            if value == known:
                return cast(ProblemType, known)
        if value is None:
            return None
        raise self.refused("problem_type", value, " or ".join(get_args(ProblemType)))

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


def short(value: object) -> str:
    """``value`` for an error message: escaped, bounded in length, safe for any object."""
    try:
        return "nothing" if value is None else _REPR.repr(value)
    except ValueError:  # an int of more than 4300 digits has no decimal text in Python 3.11
        return f"a {type(value).__name__} too long to print"
