"""The largest activations of a model, place by place: where a graph of 16-bit floats would hold them.

The checkpoint runs in PyTorch in float32, one layer in memory at a time, as the reference does (reference.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from helium_onnx.checkpoint import EMBEDDING, HEAD, NORM, Checkpoint
from helium_onnx.config import HeliumConfig
from helium_onnx.evaluation.reference import HiddenStates, LayerRunner, embed
from helium_onnx.modeling import DecoderLayer, rms_norm, rotate
from helium_onnx.progress import ProgressCallback, ProgressEvent

#: Places in a layer, in the order of the computation: outputs of the checkpoint's modules, and what lies between them.
ATTENTION_PLACES = (
    "input_layernorm", "q_proj", "k_proj", "v_proj", "scores", "attention", "o_proj", "residual + o_proj",
)  # fmt: skip
MLP_PLACES = (
    "post_attention_layernorm", "gate_proj", "up_proj", "silu(gate) * up", "down_proj", "residual + down_proj",
)  # fmt: skip
LAYER_PLACES = ATTENTION_PLACES + MLP_PLACES
#: Positions whose logits exist at once: 49 MB for a vocabulary of 48000.
_CHUNK = 256


@dataclass(frozen=True)
class Peak:
    """The largest |activation| at one place of ``layer`` (None: outside the layers); infinite where one is not finite.

    ``q_proj`` and ``k_proj`` are before and after the rotation, ``scores`` are scaled and before softmax.
    """

    layer: int | None
    place: str
    largest: float


def largest_activations(
    checkpoint: Checkpoint, texts: Sequence[Sequence[int]], report: ProgressCallback
) -> tuple[Peak, ...]:
    """Every place of the model over ``texts`` of token ids, in the order of the computation.

    ``report`` counts bytes of weights, as far as they have been applied to all texts.
    """
    config = checkpoint.config
    stage = "activations"
    report(ProgressEvent(stage, "embedding"))
    states = embed(checkpoint, texts, config.hidden_size)
    peaks = [Peak(None, "embed_tokens", max(_largest(torch.from_numpy(states[i])) for i in range(len(texts))))]
    runner = ProbedRunner(config)
    total = 4 * config.num_parameters
    for index in range(config.num_hidden_layers):
        layer = runner.load(checkpoint, index)
        found = dict.fromkeys(LAYER_PLACES, 0.0)
        for number in range(len(texts)):
            states[number][:] = runner.probe(layer, states[number], found)
        del layer
        peaks += [Peak(index, place, largest) for place, largest in found.items()]
        done = int((index + 1) / config.num_hidden_layers * total)
        report(ProgressEvent(stage, f"layer {index + 1} of {config.num_hidden_layers}", done, total))
    return (*peaks, *_head(checkpoint, states))


class ProbedRunner(LayerRunner):
    """Runs a layer and looks at what passes between its modules."""

    def probe(self, layer: DecoderLayer, hidden: NDArray[np.float32], found: dict[str, float]) -> NDArray[np.float32]:
        """``run``, raising the entries of ``found`` (one for each of LAYER_PLACES) to what is larger in this text."""
        seen: dict[str, Tensor] = {}

        def look(place: str, value: Tensor) -> None:
            seen[place] = value
            found[place] = max(found[place], _largest(value))

        with ExitStack() as hooks:
            for place, module, taken in _taps(layer):
                hooks.callback(_tap(module, place, look, given=taken == "input").remove)
            output = self.run(layer, hidden)
        look("residual + down_proj", torch.from_numpy(output))
        with torch.inference_mode():
            for place, value in _scores(seen["q_proj"], seen["k_proj"], self._cos, self._sin, self._config):
                found[place] = max(found[place], value)
        return output


def _taps(layer: DecoderLayer) -> list[tuple[str, nn.Module, str]]:
    """Places, the module beside each, and which side of it they are."""
    attention, mlp = layer.self_attn, layer.mlp
    return [
        ("input_layernorm", layer.input_layernorm, "output"),
        ("q_proj", attention.q_proj, "output"),
        ("k_proj", attention.k_proj, "output"),
        ("v_proj", attention.v_proj, "output"),
        ("attention", attention.o_proj, "input"),
        ("o_proj", attention.o_proj, "output"),
        ("residual + o_proj", layer.post_attention_layernorm, "input"),
        ("post_attention_layernorm", layer.post_attention_layernorm, "output"),
        ("gate_proj", mlp.gate_proj, "output"),
        ("up_proj", mlp.up_proj, "output"),
        ("silu(gate) * up", mlp.down_proj, "input"),
        ("down_proj", mlp.down_proj, "output"),
    ]


def _tap(module: nn.Module, place: str, look: Callable[[str, Tensor], None], *, given: bool) -> Any:
    """Let ``look`` see what ``module`` is given, or what it gives. Returns the hook's handle."""
    if given:
        return module.register_forward_pre_hook(lambda _module, args: look(place, args[0]))
    return module.register_forward_hook(lambda _module, _args, output: look(place, output))


def _scores(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, config: HeliumConfig) -> list[tuple[str, float]]:
    """The rotated queries and keys of one text ``[1, tokens, heads * head_dim]``, and their products."""
    length, size = q.shape[1], config.head_dim

    def rotated(x: Tensor) -> Tensor:
        split = x.view(1, length, -1, size).transpose(1, 2)
        return rotate(split, cos[:length], sin[:length], interleaved=config.rope_interleaved)

    query, key = rotated(q), rotated(k)
    groups = config.num_attention_heads // config.num_key_value_heads
    # A head at a time: all of them over 4096 tokens would be 1.3 GB.
    scores = (
        _largest((query[0, head] @ key[0, head // groups].T / math.sqrt(size)).tril())
        for head in range(config.num_attention_heads)
    )
    return [("q_proj", _largest(query)), ("k_proj", _largest(key)), ("scores", max(scores))]


def _head(checkpoint: Checkpoint, states: HiddenStates) -> list[Peak]:
    """The final norm, and the logits of all positions."""
    config = checkpoint.config
    weight = torch.from_numpy(checkpoint.read(NORM))
    head = torch.from_numpy(checkpoint.read(EMBEDDING if config.tie_word_embeddings else HEAD))
    norm = logits = 0.0
    with torch.inference_mode():
        for number in range(len(states)):
            x = rms_norm(torch.from_numpy(np.array(states[number])), weight, config.rms_norm_eps)
            norm = max(norm, _largest(x))
            for start in range(0, len(x), _CHUNK):
                logits = max(logits, _largest(F.linear(x[start : start + _CHUNK], head)))
    return [Peak(None, "norm", norm), Peak(None, "lm_head", logits)]


def _largest(values: Tensor) -> float:
    """max |x|; infinity for NaN, which compares with nothing."""
    largest = float(values.abs().max())
    return math.inf if math.isnan(largest) else largest
