"""What storing the weights costs, layer by layer: the reference's weights beside those of a bundle.

Both run in PyTorch in float32, so that what is measured is the weights alone, without the rounding of activations that
a kernel adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from helium_onnx.checkpoint import Checkpoint
from helium_onnx.evaluation.reference import HiddenStates, LayerRunner, WeightSource, embed
from helium_onnx.progress import ProgressCallback, ProgressEvent

#: Windows that pass through both models, and their longest part: enough for two digits of a relative error.
WINDOWS, TOKENS = 8, 256


@dataclass(frozen=True)
class LayerRow:
    """Relative squared errors, |x - reference|^2 / |reference|^2 over all positions but the first, and features.

    ``residual``: of the residual stream after the layer, errors of the layers below included. ``local``: of what the
    layer adds to it, both being given the reference's input. ``layer`` is -1 for the embedding, which has no local.

    The first position is left out: many trained models put far larger values there than anywhere else ("massive
    activations", https://arxiv.org/abs/2402.17762), which would hide all others.
    """

    layer: int
    residual: float
    local: float | None


def layer_errors(
    checkpoint: Checkpoint, weights: Sequence[WeightSource], texts: Sequence[Sequence[int]], report: ProgressCallback
) -> list[list[LayerRow]]:
    """For each of ``weights``, the rows of embedding and layers. Memory: one layer, and the texts' hidden states.

    ``report`` counts bytes of the weights that were read.
    """
    config = checkpoint.config
    stage = "layers"
    report(ProgressEvent(stage, "embedding"))
    runner = LayerRunner(config)
    reference = embed(checkpoint, texts, config.hidden_size)
    streams = [embed(source, texts, config.hidden_size) for source in weights]
    rows = [[LayerRow(-1, _relative(stream, reference), None)] for stream in streams]
    total = 4 * config.num_parameters * (1 + len(weights))
    for index in range(config.num_hidden_layers):
        layer = runner.load(checkpoint, index)
        before = [np.array(reference[number]) for number in range(len(texts))]
        for number in range(len(texts)):
            reference[number][:] = runner.run(layer, reference[number])
        del layer
        for position, (source, stream) in enumerate(zip(weights, streams, strict=True)):
            layer = runner.load(source, index)
            ours = [runner.run(layer, x) - x for x in before]
            theirs = [reference[number] - x for number, x in enumerate(before)]
            for number in range(len(texts)):
                stream[number][:] = runner.run(layer, stream[number])
            del layer
            rows[position].append(LayerRow(index, _relative(stream, reference), _error(ours, theirs)))
            share = (index + (position + 1) / len(weights)) / config.num_hidden_layers
            item = f"layer {index + 1} of {config.num_hidden_layers}"
            report(ProgressEvent(stage, item, int(share * total), total))
    return rows


def _relative(stream: HiddenStates, reference: HiddenStates) -> float:
    texts = range(len(reference))
    return _error([stream[i] for i in texts], [reference[i] for i in texts])


def _error(ours: Sequence[NDArray[np.float32]], theirs: Sequence[NDArray[np.float32]]) -> float:
    wrong = sum(float(np.square(a[1:] - b[1:], dtype=np.float64).sum()) for a, b in zip(ours, theirs, strict=True))
    size = sum(float(np.square(b[1:], dtype=np.float64).sum()) for b in theirs)
    return wrong / size if size else wrong
