"""Scales of an int8 key/value cache, from keys and values that the model makes of a calibration text.

The kernel takes one scale for each channel, fixed at export: a code is ``round(x / scale)``, held to -128 ... 127.
What a channel never reached in the text is clipped when it comes, so the scales leave a margin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from helium_onnx.checkpoint import EMBEDDING, Checkpoint
from helium_onnx.config import HeliumConfig
from helium_onnx.errors import ExportError, WeightsError
from helium_onnx.modeling import DecoderLayer, rope_tables
from helium_onnx.progress import ProgressCallback, ProgressEvent, silent

#: Codes of a channel's largest magnitude: the kernel's least code, -128, is one further.
LARGEST_CODE = 127
#: What a channel may exceed the text's largest magnitude by. On helium-docs-7m a mean KL divergence of 1.9e-4 becomes
#: 1.4e-4 where the text has 2 thousand tokens, since clipping costs more than steps that are a tenth coarser; where it
#: has 10 thousand, 1.1e-4 becomes 1.2e-4. Another user's text is further away than our held-out one.
MARGIN = 1.1
#: A channel's scale is at least this part of its layer's largest: one that was silent in the text must not divide by 0.
LEAST_SHARE = 1e-4


@dataclass(frozen=True)
class LayerScales:
    """Scales of one layer's cache: float32 ``[num_key_value_heads, head_dim]``, all above 0."""

    key: NDArray[np.float32]
    value: NDArray[np.float32]


def key_value_scales(
    checkpoint: Checkpoint, windows: Sequence[NDArray[np.int64]], progress: ProgressCallback = silent
) -> list[LayerScales]:
    """Each layer's scales, from ``windows`` of token ids (each int64 ``[tokens]``, read from position 0).

    One layer and the windows' hidden states are in memory. A pair of key channels that the rotary embedding turns into
    each other shares the scale of the pair's largest length, which no position exceeds; a value channel has that of
    its largest magnitude.

    Raises:
        ExportError: no window has a token.
        WeightsError: a layer's keys or values are not finite, so that no scale can be made.
    """
    windows = [ids for ids in windows if len(ids)]
    if not windows:
        raise ExportError(
            "an int8 key/value cache needs a text to choose its scales from",
            found="no tokens",
            expected="a calibration text of some thousand tokens",
        )
    config = checkpoint.config
    scales: list[LayerScales] = []
    tokens, total = sum(map(len, windows)), 4 * config.num_parameters
    for index, largest in enumerate(_largest(checkpoint, windows)):
        for kind, values in zip(("keys", "values"), largest, strict=True):
            if not bool(torch.isfinite(values).all()):
                raise WeightsError(
                    f"layer {index} makes {kind} that are no numbers, so an int8 key/value cache has no scales",
                    found=f"{int((~torch.isfinite(values)).sum())} of {values.numel()} channels NaN or infinite",
                    expected=f"finite {kind} for the calibration text",
                    remedy='check the checkpoint\'s weights, or set precision.key_value_cache = "float32"',
                )
        scales.append(LayerScales(*map(_scales, largest)))
        done = total * (index + 1) // config.num_hidden_layers
        progress(ProgressEvent("cache scales", f"layer {index}, {tokens} tokens", done, total))
    return scales


def _scales(largest: Tensor) -> NDArray[np.float32]:
    """Scales of channels whose ``largest`` magnitudes are given, of the same shape."""
    most = float(largest.max())
    if most == 0:
        return np.ones(largest.shape, np.float32)  # a layer that adds nothing: all codes are 0
    result: NDArray[np.float32] = (MARGIN * largest.clamp(min=LEAST_SHARE * most) / LARGEST_CODE).numpy()
    return result


def _largest(checkpoint: Checkpoint, windows: Sequence[NDArray[np.int64]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Layer by layer the largest magnitudes of keys and of values: two float32 ``[num_key_value_heads, head_dim]``."""
    config = checkpoint.config
    cos, sin = rope_tables(config)
    nothing = torch.zeros(1, config.num_key_value_heads, 0, config.head_dim)
    states = [torch.from_numpy(checkpoint.gather_rows(EMBEDDING, ids))[None] for ids in windows]
    for index in range(config.num_hidden_layers):
        with torch.inference_mode():
            layer = DecoderLayer.load(config, checkpoint.read, index)
            keys, values = (torch.zeros(config.num_key_value_heads, config.head_dim) for _ in range(2))
            for number, x in enumerate(states):
                mask = torch.ones(1, x.shape[1], dtype=torch.int64)
                states[number], key, value = layer(x, (nothing, nothing), mask, cos, sin)
                # maximum, unlike max, hands on NaN
                keys = torch.maximum(keys, _pair_lengths(key[0], config).amax(1))
                values = torch.maximum(values, value[0].abs().amax(1))
        yield keys, values


def _pair_lengths(keys: Tensor, config: HeliumConfig) -> Tensor:
    """For each channel of ``keys [..., head_dim]`` the length of the pair that it is rotated in, of the same shape."""
    pairs = config.head_dim // 2
    axis, shape = (-1, (pairs, 2)) if config.rope_interleaved else (-2, (2, pairs))
    folded = keys.view(*keys.shape[:-1], *shape)
    return torch.hypot(*folded.unbind(axis)).unsqueeze(axis).expand_as(folded).flatten(-2)
