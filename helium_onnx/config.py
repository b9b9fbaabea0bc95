"""The model's config: Hugging Face's config.json, read strictly and under its own names.

Everything is checked here, before a byte is allocated for it: what is later computed from a ``HeliumConfig`` need not
ask again whether sizes are positive or heads divide. Two architectures carry the name Helium: ``model_type: helium``
(kyutai/helium-1-preview-2b) and ``model_type: llama`` (kyutai/helium-1-2b). They differ in RoPE's pairing, in the
order of RMSNorm's last two operations and in their defaults. Only ``json`` is imported: a runtime reads a config from
a bundle's manifest without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from helium_onnx import strict_json
from helium_onnx.config_fields import Fields, ModelType, ProblemType
from helium_onnx.errors import ConfigError
from helium_onnx.tasks import Task, task_of

MAX_PARAMETERS = 100_000_000_000

#: config.json of kyutai/helium-1-preview-2b, as far as it tells the model from any other.
PREVIEW_2B: Mapping[str, object] = {
    "model_type": "helium",
    "vocab_size": 48000,
    "hidden_size": 2560,
    "intermediate_size": 7040,
    "num_hidden_layers": 24,
    "num_attention_heads": 20,
    "num_key_value_heads": 20,
    "head_dim": 128,
    "rope_theta": 100_000.0,
}

#: A config is about 1 KB; what is larger than this is some other file.
_MAX_BYTES = 1 << 20


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

_OTHER_MODEL = (
    "pass a Helium checkpoint, and leave the field as it is: its weights were trained with it. "
    "optimum-onnx exports other models"
)
_UNQUANTIZED = "pass the checkpoint that it was quantized from; a recipe quantizes that"

#: Fields that would change the arithmetic: the values under which they do not, and what else they would mean.
#: Other families' fields stand here because a model_type is easily changed, and transformers' Llama ignores them.
_NOT_BUILT: dict[str, tuple[tuple[object, ...], str]] = {
    "hidden_act": ((None, "silu"), "another activation of the MLP"),
    "attention_bias": ((None, False), "biases on the attention's projections"),
    "mlp_bias": ((None, False), "biases on the MLP's projections"),
    "rope_scaling": ((None,), "scaled RoPE"),
    "partial_rotary_factor": ((None, 1, 1.0), "RoPE over a part of each head"),
    "no_rope_layers": ((None,), "layers without RoPE"),
    "sliding_window": ((None,), "attention over a window"),
    "attn_logit_softcapping": ((None,), "a soft cap of the attention's scores"),
    "final_logit_softcapping": ((None,), "a soft cap of the logits"),
    "embedding_multiplier": ((None, 1, 1.0), "scaled embeddings"),
    "residual_multiplier": ((None, 1, 1.0), "scaled residual sums"),
    "attention_multiplier": ((None,), "another scale of the attention's scores"),
    "logits_scaling": ((None, 1, 1.0), "scaled logits"),
    "num_local_experts": ((None,), "a mixture of experts"),
    "pretraining_tp": ((None, 1), "matrix products split as in training"),
    "quantization_config": ((None,), "weights that are quantized already"),
}


@dataclass(frozen=True)
class HeliumConfig:
    """A model's sizes and constants, in Hugging Face's names. Make it by ``from_file`` or ``from_dict``, which check.

    ``eos_token_ids`` holds ``eos_token_id``, which config.json spells as an int, a list or null. ``dtype`` is the
    checkpoint's own (``bfloat16``, ``float16``, ``float32``) or None where the file is silent.

    Of classifiers: ``id2label`` are the labels' names in the order of their ids, ``problem_type`` says how scores are
    made of logits (None: softmax), and ``token_classification_bias`` whether a classifier of tokens has a bias.
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
    id2label: tuple[str, ...] = ()
    problem_type: ProblemType | None = None
    token_classification_bias: bool = True

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
        fields = Fields(data, source)
        model_type = fields.model_type()
        defaults = _DEFAULTS[model_type]
        for name, (allowed, meaning) in _NOT_BUILT.items():
            fields.only(name, allowed, meaning, _UNQUANTIZED if name == "quantization_config" else _OTHER_MODEL)
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
            id2label=fields.id2label(),
            problem_type=fields.problem_type(),
            token_classification_bias=fields.boolean("token_classification_bias", default=True),
        )
        _check_relations(config, fields)
        return config

    def to_dict(self) -> dict[str, object]:
        """The same as JSON, in config.json's form: ``from_dict(config.to_dict(), source=...) == config``."""
        fields: dict[str, object] = {**vars(self), "architectures": list(self.architectures)}
        eos = fields.pop("eos_token_ids")
        assert isinstance(eos, tuple)
        fields["eos_token_id"] = eos[0] if len(eos) == 1 else list(eos) or None
        fields["rope_parameters"] = {"rope_theta": fields.pop("rope_theta"), "rope_type": "default"}
        labels = self.id2label
        fields["id2label"] = {str(i): label for i, label in enumerate(labels)}
        # What says nothing of the model stays out, as it does in configs of language models.
        silent = {"id2label": not labels, "problem_type": self.problem_type is None}
        silent["token_classification_bias"] = self.token_classification_bias
        return {name: value for name, value in fields.items() if not silent.get(name, False)}

    @property
    def task(self) -> Task:
        """What the model computes, by its class in ``architectures``; an unknown one is taken for a language model."""
        return task_of(self.architectures, self.model_type) or "text-generation"

    @property
    def num_labels(self) -> int:
        """Labels of a classifier; 0 where it has none."""
        return len(self.id2label)

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


def _check_relations(config: HeliumConfig, fields: Fields) -> None:
    """What no field can say alone. Raises ConfigError."""
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    if head_dim % 2:
        raise fields.refused("head_dim", head_dim, "an even number: RoPE rotates pairs")
    if heads * head_dim != config.hidden_size:
        # o_proj is Linear(hidden_size, hidden_size) in HeliumAttention.
        expected = f"num_attention_heads {heads} x head_dim to equal hidden_size {config.hidden_size}"
        raise fields.refused("head_dim", head_dim, expected)
    if heads % kv_heads:
        raise fields.refused("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads {heads}")
    if config.num_parameters > MAX_PARAMETERS:
        expected = f"at most {MAX_PARAMETERS:,}, a bound of sanity"
        raise fields.refused("the number of parameters that the sizes make", config.num_parameters, expected)


def _unreadable(path: Path, found: object) -> ConfigError:
    return ConfigError(
        f"{path} cannot be read",
        found=found,
        expected="a JSON object in UTF-8, each key once, without NaN or Infinity",
        remedy="take the file as its authors published it",
    )
