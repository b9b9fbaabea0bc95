"""Helium in PyTorch, read top-down: norm, rotary embedding, attention, MLP, layer, model.

One module a task, for two uses. Run eagerly it is the reference that parity tests hold against ``transformers``. Under
``torch.export`` the operators that every runtime spells differently (``rms_norm``, ``causal_attention``) and
``last_token`` leave one node each, as ``helium_onnx::RMSNorm``, which the passes of ``exporter/passes`` lower to the
graph form that a recipe asks for; the arithmetic written here is those nodes' specification.

Parameter names are the checkpoint's. Architecture: ``transformers`` ``models/helium/modeling_helium.py`` (``model_type:
helium``) and ``models/llama/modeling_llama.py`` (``model_type: llama``, as kyutai/helium-1-2b).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.onnx import ops

from helium_onnx.config import HeliumConfig

if TYPE_CHECKING:
    from helium_onnx.checkpoint import Checkpoint

#: Keys and values of one layer, or none; what attention gives: output, present key, present value.
LayerPast: TypeAlias = tuple[Tensor | None, Tensor | None]
_Attended: TypeAlias = tuple[Tensor, Tensor, Tensor]
#: Domain of the nodes that the passes lower. No file of a bundle holds one.
DOMAIN = "helium_onnx"


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm of the last axis. ``x`` ``[..., hidden_size]``, ``weight`` ``[hidden_size]``.

    Helium multiplies by the weight in float32 and casts last; Llama casts first. In float32 they are the same, and
    the fused operators of ONNX Runtime do as Helium does.
    """
    if torch.compiler.is_exporting():
        y: Tensor = ops.symbolic(
            f"{DOMAIN}::RMSNorm", [x, weight], attrs={"epsilon": eps}, dtype=x.dtype, shape=x.shape, version=1
        )
        return y
    wide = x.to(torch.float32)
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (weight.to(torch.float32) * normed).to(x.dtype)


def rope_tables(config: HeliumConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines of all positions: two float32 ``[max_position_embeddings, head_dim / 2]``.

    Angles are ``position * theta ** (-2j / head_dim)`` (https://arxiv.org/abs/2104.09864), in float32 and in the
    order of operations of ``transformers``, so that the tables are equal to the bit.
    """
    steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    inverse_frequency = 1.0 / (config.rope_theta**steps)
    positions = torch.arange(config.max_position_embeddings, dtype=torch.float32)
    angles = torch.outer(positions, inverse_frequency)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Rotate ``x [batch, heads, sequence, head_dim]`` by ``cos``, ``sin`` ``[batch, 1, sequence, head_dim / 2]``."""
    if interleaved:  # Helium rotates neighbours: pairs are (x[0], x[1]), (x[2], x[3]), ...
        first, second = x[..., 0::2], x[..., 1::2]
        return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)
    first, second = x.chunk(2, dim=-1)  # Llama rotates halves: pairs are (x[0], x[D/2]), (x[1], x[D/2 + 1]), ...
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def positions_from_mask(attention_mask: Tensor, sequence_length: int) -> Tensor:
    """Position of each new token, counting only real tokens: ``[batch, sequence_length]`` int64, padding gets 0."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -sequence_length:]


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor | None,
    past_value: Tensor | None,
    attention_mask: Tensor,
    cos: Tensor,
    sin: Tensor,
    config: HeliumConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotate, append to the past, attend. Returns output, present key, present value.

    ``query`` ``[batch, sequence, heads * head_dim]``; ``key``, ``value`` ``[batch, sequence, kv_heads * head_dim]``;
    pasts ``[batch, kv_heads, past_sequence, head_dim]``, or None for no past; ``attention_mask``
    ``[batch, past_sequence + sequence]``, 1 for a token and 0 for padding on either side; tables as of
    :func:`rope_tables`.
    """
    heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    if torch.compiler.is_exporting():
        present_shape = (query.shape[0], groups, attention_mask.shape[1], size)
        output, present_key, present_value = ops.symbolic_multi_out(
            f"{DOMAIN}::CausalAttention",
            [query, key, value, past_key, past_value, attention_mask, cos, sin],
            attrs={
                "num_heads": heads,
                "kv_num_heads": groups,
                "head_dim": size,
                "interleaved": int(config.rope_interleaved),
            },
            dtypes=[query.dtype, key.dtype, value.dtype],
            shapes=[query.shape, present_shape, present_shape],
            version=1,
        )
        return output, present_key, present_value

    batch, length, _ = query.shape
    positions = positions_from_mask(attention_mask, length)
    cos_rows, sin_rows = cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)
    q = rotate(
        query.view(batch, length, heads, size).transpose(1, 2),
        cos_rows, sin_rows, interleaved=config.rope_interleaved,
    )  # fmt: skip
    k = rotate(
        key.view(batch, length, groups, size).transpose(1, 2),
        cos_rows, sin_rows, interleaved=config.rope_interleaved,
    )  # fmt: skip
    v = value.view(batch, length, groups, size).transpose(1, 2)
    present_key = k if past_key is None else torch.cat((past_key, k), dim=2)
    present_value = v if past_value is None else torch.cat((past_value, v), dim=2)

    total = present_key.shape[2]
    new = torch.arange(total - length, total, device=query.device)
    causal = torch.arange(total, device=query.device)[None, :] <= new[:, None]
    allowed = causal[None, None] & attention_mask[:, None, None, :].bool()
    scores = q @ present_key.repeat_interleave(heads // groups, dim=1).transpose(2, 3) / math.sqrt(size)
    # The least finite number, not -inf: a row of padding then gives some average instead of NaN.
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    mixed = weights @ present_value.repeat_interleave(heads // groups, dim=1)
    return mixed.transpose(1, 2).reshape(batch, length, heads * size), present_key, present_value


def last_token(x: Tensor, input_ids: Tensor, pad_token_id: int | None) -> Tensor:
    """Each row's rightmost token that is no padding: of ``x [batch, sequence, hidden_size]`` ``[batch, hidden_size]``.

    By ``input_ids``, as ``transformers`` does (GenericForSequenceClassification): of a row of padding throughout the
    first, and without a ``pad_token_id`` the last one.
    """
    if pad_token_id is None:
        return x[:, -1]
    if torch.compiler.is_exporting():
        y: Tensor = ops.symbolic(
            f"{DOMAIN}::LastToken",
            [x, input_ids],
            attrs={"pad_token_id": pad_token_id},
            dtype=x.dtype,
            shape=(x.shape[0], x.shape[2]),
            version=1,
        )
        return y
    places = torch.arange(input_ids.shape[1], device=input_ids.device) * (input_ids != pad_token_id)
    return x[torch.arange(x.shape[0], device=x.device), places.argmax(-1)]


class RMSNorm(nn.Module):
    """:func:`rms_norm` with its weight."""

    def __init__(self, config: HeliumConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.eps = config.rms_norm_eps  # Helium: 1e-8

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention without biases."""

    def __init__(self, config: HeliumConfig) -> None:
        super().__init__()
        self.config = config
        width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, past: LayerPast, attention_mask: Tensor, cos: Tensor, sin: Tensor) -> _Attended:
        mixed, key, value = causal_attention(
            self.q_proj(x), self.k_proj(x), self.v_proj(x), *past, attention_mask, cos, sin, self.config
        )
        return self.o_proj(mixed), key, value


class MLP(nn.Module):
    """Gated MLP: ``down(silu(gate(x)) * up(x))``."""

    def __init__(self, config: HeliumConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm and a residual sum."""

    def __init__(self, config: HeliumConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config)
        self.post_attention_layernorm = RMSNorm(config)

    @classmethod
    def load(cls, config: HeliumConfig, read: Callable[[str], NDArray[np.float32]], index: int) -> DecoderLayer:
        """Layer ``index`` alone, its weights as ``read`` gives them by the checkpoint's names; for evaluation."""
        with torch.device("meta"):
            layer = cls(config)
        names = list(layer.state_dict())
        state = {name: torch.from_numpy(read(f"model.layers.{index}.{name}")) for name in names}
        layer.load_state_dict(state, assign=True)
        return layer.eval().requires_grad_(False)

    def forward(self, x: Tensor, past: LayerPast, attention_mask: Tensor, cos: Tensor, sin: Tensor) -> _Attended:
        attended, key, value = self.self_attn(self.input_layernorm(x), past, attention_mask, cos, sin)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), key, value


class Decoder(nn.Module):
    """Embedding, layers and final norm: the ``model.`` of the checkpoint's names."""

    def __init__(self, config: HeliumConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config)


class HeliumForCausalLM(nn.Module):
    """The language model, with explicit past and present.

    ``forward(input_ids, attention_mask, past)`` takes int64 ``[batch, sequence]``, int64 ``[batch, total]`` and a flat
    list of keys and values, layer by layer, and returns ``(logits [batch, sequence, vocab_size], *present)``.
    """

    def __init__(self, config: HeliumConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        cos, sin = rope_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.cos: Tensor
        self.sin: Tensor

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> HeliumForCausalLM:
        """The model with a checkpoint's weights in float32, on the CPU, for evaluation."""
        with torch.device("meta"):
            module = cls(checkpoint.config)
        state = {
            name: torch.from_numpy(checkpoint.read(name))
            for name in module.state_dict()
            if not (name == "lm_head.weight" and checkpoint.config.tie_word_embeddings)
        }
        module.load_state_dict(state, strict=False, assign=True)
        if checkpoint.config.tie_word_embeddings:
            module.lm_head.weight = module.model.embed_tokens.weight
        module.cos, module.sin = rope_tables(checkpoint.config)
        return module.eval().requires_grad_(False)

    def empty_past(self, batch_size: int = 1) -> list[Tensor]:
        """A past of no tokens: ``2 * num_hidden_layers`` tensors ``[batch, kv_heads, 0, head_dim]``."""
        c = self.config
        return [torch.zeros(batch_size, c.num_key_value_heads, 0, c.head_dim) for _ in range(2 * c.num_hidden_layers)]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, ...]:
        x = self.model.embed_tokens(input_ids)
        present: list[Tensor] = []
        for i, layer in enumerate(self.model.layers):
            x, key, value = layer(x, (past[2 * i], past[2 * i + 1]), attention_mask, self.cos, self.sin)
            present += [key, value]
        return self.lm_head(self.model.norm(x)), *present


class HeliumWithoutHead(nn.Module):
    """The tasks without generation, by ``config.task``: HeliumModel, and the two classifiers over it.

    ``forward(input_ids, attention_mask)`` takes int64 ``[batch, sequence]`` twice, padded on either side, and returns
    for ``feature-extraction`` what the last norm gives, ``[batch, sequence, hidden_size]``; for ``text-classification``
    logits ``[batch, num_labels]``; for ``token-classification`` logits ``[batch, sequence, num_labels]``.
    """

    def __init__(self, config: HeliumConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        if config.task != "feature-extraction":
            bias = config.task == "token-classification" and config.token_classification_bias
            self.score = nn.Linear(config.hidden_size, config.num_labels, bias=bias)
        cos, sin = rope_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.cos: Tensor
        self.sin: Tensor

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.model.embed_tokens(input_ids)
        for layer in self.model.layers:
            x, _, _ = layer(x, (None, None), attention_mask, self.cos, self.sin)
        x = self.model.norm(x)
        if self.config.task == "text-classification":
            x = last_token(x, input_ids, self.config.pad_token_id)
        y: Tensor = x if self.config.task == "feature-extraction" else self.score(x)
        return y
