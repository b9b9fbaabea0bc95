"""What quantizing one matrix costs: an estimate of the KL divergence, for every matrix and several ways to store it.

For a small change D of a matrix, the divergence of the model's predictions is ``1/2 E[(sum of G * D)^2]``, where G is
the gradient of ``-log p(y)`` summed over a window and the y are drawn from the model's own predictions (the Fisher
information; the draws are independent, so positions do not mix). Rounding errors of different rows are independent as
well, so that rows are squared one by one: many squares instead of one make the estimate steady from little text.

One pass forward and one backward, a layer in memory at a time: layer inputs are kept (tokens * hidden_size * 4 bytes
a layer), a layer's forward is computed again where its gradient is wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from helium_onnx.checkpoint import EMBEDDING, HEAD, NORM, Checkpoint
from helium_onnx.errors import CheckpointError
from helium_onnx.exporter.quantize import dequantize
from helium_onnx.exporter.quantize.round_to_nearest import quantize_rows
from helium_onnx.modeling import DecoderLayer, rms_norm, rope_tables
from helium_onnx.progress import ProgressCallback, ProgressEvent, silent
from helium_onnx.recipe import MatrixSettings

Costs = dict[str, dict[MatrixSettings, float]]

#: Rows of the head that are changed at once.
_ROWS = 4096


class Sensitivity:
    """Estimates for one checkpoint. ``windows``: token ids, int64 ``[tokens]`` each, read from position 0."""

    def __init__(
        self, checkpoint: Checkpoint, windows: Sequence[NDArray[np.int64]], progress: ProgressCallback = silent
    ) -> None:
        self.checkpoint, self.config, self.progress = checkpoint, checkpoint.config, progress
        self._windows = [torch.from_numpy(ids) for ids in windows]
        self._tokens = sum(map(len, windows))
        self._tables = rope_tables(self.config)
        self._draws = torch.Generator().manual_seed(0)  # equal inputs give equal bundles

    def measure(self, candidates: Mapping[str, Iterable[MatrixSettings]]) -> Costs:
        """The estimated mean KL divergence, in nats a token, of each matrix in each of its ``candidates`` alone.

        Matrices are named as in the checkpoint; rounding is to the nearest, so a method that rounds better costs less.

        Raises:
            CheckpointError: a gradient is not finite.
        """
        states = [[torch.from_numpy(self.checkpoint.gather_rows(EMBEDDING, ids.numpy())) for ids in self._windows]]
        layers = self.config.num_hidden_layers
        for index in range(layers):
            self._report(f"layer {index + 1} of {layers}, forward")
            layer = DecoderLayer.load(self.config, self.checkpoint.read, index)
            with torch.no_grad():
                states.append([self._run(layer, x) for x in states[-1]])
            del layer
        self._report("head")
        costs, gradients = self._head(states.pop(), tuple(candidates.get(HEAD, ())))
        for index in reversed(range(layers)):
            self._report(f"layer {index + 1} of {layers}, backward")
            more, gradients = self._backward(index, states.pop(), gradients, candidates)
            costs |= more
        costs |= self._embedding(gradients, tuple(candidates.get(EMBEDDING, ())))
        for name, by_settings in costs.items():
            if not np.isfinite(list(by_settings.values())).all():
                raise _no_number(f"the sensitivity of {name.removesuffix('.weight')}")
        return {name: costs[name] for name in candidates}

    def _run(self, layer: DecoderLayer, x: Tensor) -> Tensor:
        c = self.config
        nothing = torch.zeros(1, c.num_key_value_heads, 0, c.head_dim)
        mask = torch.ones(1, len(x), dtype=torch.int64)
        output: Tensor = layer(x[None], (nothing, nothing), mask, *self._tables)[0][0]
        return output

    def _head(self, states: list[Tensor], settings: tuple[MatrixSettings, ...]) -> tuple[Costs, list[Tensor]]:
        """The head's costs, which need no estimate, and the gradients by the last layer's output."""
        norm = torch.from_numpy(self.checkpoint.read(NORM))
        source = EMBEDDING if self.config.tie_word_embeddings else HEAD
        head = torch.from_numpy(self.checkpoint.read(source))
        divergence = dict.fromkeys(settings, 0.0)
        gradients = []
        for state in states:
            x = state.requires_grad_()
            with torch.enable_grad():
                normed = rms_norm(x, norm, self.config.rms_norm_eps)
            hidden = normed.detach()
            logits = F.linear(hidden, head)
            if not bool(torch.isfinite(logits).all()):
                raise _no_number("a logit for the calibration text")
            for each in settings:
                divergence[each] += self._divergence(logits, hidden, head, each)
            p = logits.softmax(-1)
            drawn = torch.multinomial(p, 1, generator=self._draws)
            p.scatter_add_(1, drawn, torch.full(drawn.shape, -1.0))  # d(-log p(y)) / d logits
            gradients.append(torch.autograd.grad(normed, x, p @ head)[0])
        return {HEAD: {each: total / self._tokens for each, total in divergence.items()}}, gradients

    @staticmethod
    def _divergence(logits: Tensor, hidden: Tensor, head: Tensor, settings: MatrixSettings) -> float:
        """Sum over positions of KL(softmax(logits) || the same with the quantized head)."""
        changed = torch.empty_like(logits)
        for first in range(0, len(head), _ROWS):
            rows = head[first : first + _ROWS]
            changed[:, first : first + _ROWS] = F.linear(hidden, rows + _error(rows, settings))
        log_p = logits.log_softmax(-1)
        return float((log_p.exp() * (log_p - changed.log_softmax(-1))).sum(dtype=torch.float64))

    def _backward(
        self,
        index: int,
        states: list[Tensor],
        gradients: list[Tensor],
        candidates: Mapping[str, Iterable[MatrixSettings]],
    ) -> tuple[Costs, list[Tensor]]:
        """The costs of one layer's matrices, and the gradients by its input."""
        layer = DecoderLayer.load(self.config, self.checkpoint.read, index)
        parameters = {f"model.layers.{index}.{name}": weight for name, weight in layer.named_parameters()}
        wanted = {name: tuple(candidates[name]) for name in parameters if name in candidates}
        for name, weight in parameters.items():
            weight.requires_grad_(name in wanted)
        errors = {
            (name, each): _error(parameters[name].detach(), each) for name, list_ in wanted.items() for each in list_
        }
        squares = dict.fromkeys(errors, 0.0)
        below = []
        for state, gradient in zip(states, gradients, strict=True):
            x = state.detach().requires_grad_()
            with torch.enable_grad():
                output = self._run(layer, x)
            by_input, *by_weights = torch.autograd.grad(output, [x, *(parameters[name] for name in wanted)], gradient)
            below.append(by_input)
            for name, by_weight in zip(wanted, by_weights, strict=True):
                for each in wanted[name]:
                    rows = torch.linalg.vecdot(by_weight, errors[name, each])
                    squares[name, each] += float(rows.double().square().sum())
        costs: Costs = {name: {} for name in wanted}
        for (name, each), square in squares.items():
            costs[name][each] = square / (2 * self._tokens)
        return costs, below

    def _embedding(self, gradients: list[Tensor], settings: tuple[MatrixSettings, ...]) -> Costs:
        """As a matrix whose rows are picked by ids: a token that occurs twice in a window has the same error twice."""
        squares = dict.fromkeys(settings, 0.0)
        for ids, gradient in zip(self._windows, gradients, strict=True):
            used, place = torch.unique(ids, return_inverse=True)
            by_row = torch.zeros(len(used), gradient.shape[1]).index_add_(0, place, gradient)
            rows = torch.from_numpy(self.checkpoint.gather_rows(EMBEDDING, used.numpy()))
            for each in settings:
                errors = torch.linalg.vecdot(by_row, _error(rows, each))
                squares[each] += float(errors.double().square().sum())
        return {EMBEDDING: {each: square / (2 * self._tokens) for each, square in squares.items()}}

    def _report(self, item: str) -> None:
        self.progress(ProgressEvent("sensitivity", item))


def _no_number(what: str) -> CheckpointError:
    return CheckpointError(
        f"{what} is no number",
        expected="finite activations and gradients for the calibration text",
        remedy="check the checkpoint's weights, or set overrides by hand instead of a budget",
    )


def _error(weight: Tensor, settings: MatrixSettings) -> Tensor:
    """What rounding to the nearest adds to ``weight`` float32 ``[rows, columns]``."""
    if not settings.quantized:
        return torch.zeros_like(weight)
    result = torch.empty_like(weight)
    for first in range(0, len(weight), _ROWS):
        values = weight[first : first + _ROWS].numpy()
        stored = dequantize(quantize_rows(values, settings), settings, values.shape[1])
        result[first : first + _ROWS] = torch.from_numpy(stored - values)
    return result
