"""Methods that look at activations: a calibration text goes through the model while it is quantized, layer by layer.

Two streams of hidden states run side by side: the reference's, and that of the model as far as it is quantized. A
matrix is chosen for the inputs that it will really have, those of the quantized stream. The two matrices of a layer
that write to the residual stream, o_proj and down_proj, are moreover asked to make up for what the stream lacks
beside the reference's (in closed form: gptq.corrected), so that errors do not add up from layer to layer.

Memory: one layer in float32, its dequantized form, one H and its inverse's factor, and both streams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from helium_onnx.checkpoint import EMBEDDING, HEAD, NORM, Checkpoint
from helium_onnx.errors import CheckpointError
from helium_onnx.exporter.quantize import QuantizedRows, dequantize, gptq, row_function
from helium_onnx.modeling import rms_norm, rope_tables, rotate
from helium_onnx.recipe import MatrixSettings, Quantization

#: Tokens that go through the gate and up projections together.
_TOKENS = 4096
_PIECE_BYTES = 8 << 20


class Calibrated:
    """The quantizer of GPTQ, and of k-quant where calibration text is given.

    ``windows``: token ids, int64 ``[tokens]`` each, read from position 0. Raises CheckpointError where activations
    are not finite.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        quantization: Quantization,
        windows: Sequence[NDArray[np.int64]],
    ) -> None:
        self.checkpoint, self.quantization = checkpoint, quantization
        self._listener: Callable[[str], object] = str  # any function that takes a name and does nothing
        self.config = checkpoint.config
        self._windows = windows
        self._lengths = [len(ids) for ids in windows]
        self._tables = rope_tables(self.config)
        self._layer = -1  # the last one that has been quantized
        self._ready: dict[str, QuantizedRows] = {}
        self._streams: tuple[Tensor, Tensor] | None = None

    def listen(self, report: Callable[[str], None]) -> None:
        """See ``Quantizer.listen``: it is called for each matrix."""
        self._listener = report

    def rows(self, name: str, source: str, settings: MatrixSettings) -> Iterator[tuple[int, QuantizedRows]]:
        """See ``Quantizer.rows``. Matrices of a layer are asked for after those of the layers below."""
        if name == EMBEDDING:
            function = row_function(self.quantization.method)
            for row, values in self.checkpoint.iter_rows(EMBEDDING, max_bytes=_PIECE_BYTES):
                yield row, function(values, settings)
        elif name == HEAD:
            self._advance(self.config.num_hidden_layers - 1)
            yield from self._head(source, settings)
        else:
            self._advance(int(source.split(".")[2]))
            yield 0, self._ready.pop(source)

    def _advance(self, layer: int) -> None:
        """Quantize all matrices of the layers up to ``layer``."""
        if self._streams is None:
            self._streams = self._embedded()
        while self._layer < layer:
            self._layer += 1
            self._ready.clear()
            self._run_layer(f"model.layers.{self._layer}.")

    def _embedded(self) -> tuple[Tensor, Tensor]:
        """Both streams' embeddings, float32 ``[tokens, hidden_size]``; only the text's own rows are kept."""
        used, places = np.unique(np.concatenate(self._windows), return_inverse=True)
        table = self.checkpoint.gather_rows(EMBEDDING, used)
        settings, stored = self.quantization.settings_of(EMBEDDING), table
        if settings.quantized:
            function = row_function(self.quantization.method)
            stored = dequantize(function(table, settings), settings, table.shape[1])
        return torch.from_numpy(stored[places]), torch.from_numpy(table[places])

    def _run_layer(self, layer: str) -> None:
        assert self._streams is not None
        x, y = self._streams  # quantized, reference
        weights = {
            name: torch.from_numpy(self.checkpoint.read(f"{layer}{name}.weight"))
            for name in ("input_layernorm", "post_attention_layernorm")
        }
        attention, mlp = f"{layer}self_attn.", f"{layer}mlp."

        reference = self._read(attention, "q_proj", "k_proj", "v_proj")
        wanted = self._attend(self._norm(y, weights["input_layernorm"]), reference)
        hidden = self._norm(x, weights["input_layernorm"])
        mixed = self._attend(hidden, self._quantize(attention, reference, hidden))
        output = self._read(attention, "o_proj")
        y = y + F.linear(wanted, output["o_proj"])
        del wanted, reference
        stored = self._quantize(attention, output, mixed, residual=y - x)
        x = x + F.linear(mixed, stored["o_proj"])
        del mixed

        reference = self._read(mlp, "gate_proj", "up_proj")
        wanted = self._gated(self._norm(y, weights["post_attention_layernorm"]), reference)
        hidden = self._norm(x, weights["post_attention_layernorm"])
        gated = self._gated(hidden, self._quantize(mlp, reference, hidden))
        del reference, hidden
        output = self._read(mlp, "down_proj")
        y = y + F.linear(wanted, output["down_proj"])
        del wanted
        stored = self._quantize(mlp, output, gated, residual=y - x)
        x = x + F.linear(gated, stored["down_proj"])
        self._streams = x, y

    def _quantize(
        self, prefix: str, weights: dict[str, Tensor], inputs: Tensor, residual: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Quantize matrices that read the same ``inputs`` ``[tokens, columns]``; their dequantized forms.

        ``residual`` ``[tokens, rows]`` is what the output should be, where that is not the matrix's own.
        """
        result = {}
        hessian: gptq.InverseHessian | None = None
        importance: NDArray[np.float32] | None = None
        for short, weight in weights.items():
            name = f"{prefix}{short}.weight"
            settings = self.quantization.settings_of(name)
            if not settings.quantized:
                result[short] = weight
                continue
            self._listener(name)
            if self.quantization.method == "gptq":
                hessian = hessian or self._inverse_hessian(inputs, name)
                if residual is not None:
                    missing = _sum_of_products(residual - F.linear(inputs, weight), inputs)
                    weight = gptq.corrected(weight, missing, hessian)
                self._ready[name], result[short] = gptq.quantize(weight, hessian, settings)
            else:
                importance = self._importance(inputs, name) if importance is None else importance
                rows = row_function(self.quantization.method)(weight.numpy(), settings, importance)
                self._ready[name] = rows
                result[short] = torch.from_numpy(dequantize(rows, settings, weight.shape[1]))
        return result

    def _head(self, source: str, settings: MatrixSettings) -> Iterator[tuple[int, QuantizedRows]]:
        assert self._streams is not None
        norm = torch.from_numpy(self.checkpoint.read(NORM))
        inputs = self._norm(self._streams[0], norm)
        self._listener(HEAD)
        if self.quantization.method == "gptq":
            hessian = self._inverse_hessian(inputs, HEAD)
            # What the head gets is not quite what the reference's gets: least squares again, W + W (f - x)^T x / H.
            drift = hessian.divide(_sum_of_products(self._norm(self._streams[1], norm) - inputs, inputs))
            for row, values in self.checkpoint.iter_rows(source, max_bytes=4 * _PIECE_BYTES):
                weight = torch.from_numpy(values)
                yield row, gptq.quantize(torch.addmm(weight, weight, drift), hessian, settings)[0]
            return
        importance = self._importance(inputs, HEAD)
        function = row_function(self.quantization.method)
        for row, values in self.checkpoint.iter_rows(source, max_bytes=_PIECE_BYTES):
            yield row, function(values, settings, importance)

    def _inverse_hessian(self, inputs: Tensor, name: str) -> gptq.InverseHessian:
        try:
            return gptq.InverseHessian.of(inputs)
        except ValueError as error:
            raise self._not_finite(name, error) from error

    def _importance(self, inputs: Tensor, name: str) -> NDArray[np.float32]:
        importance: NDArray[np.float32] = inputs.square().mean(0).numpy()
        if not np.isfinite(importance).all():
            raise self._not_finite(name, "the inputs of the matrix are not finite")
        return importance

    def _not_finite(self, name: str, found: object) -> CheckpointError:
        return CheckpointError(
            f"activations fail at {name.removesuffix('.weight')} while calibrating",
            found=found,
            expected="finite numbers for the calibration text, in float32",
            remedy='check the checkpoint\'s weights, or use a method without calibration ("k-quant")',
        )

    def _read(self, prefix: str, *names: str) -> dict[str, Tensor]:
        return {name: torch.from_numpy(self.checkpoint.read(f"{prefix}{name}.weight")) for name in names}

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight, self.config.rms_norm_eps)

    def _attend(self, hidden: Tensor, weights: dict[str, Tensor]) -> Tensor:
        """What o_proj reads: ``[tokens, heads * head_dim]``, each window by itself."""
        c = self.config
        groups = c.num_attention_heads // c.num_key_value_heads
        sizes = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads, "v_proj": c.num_key_value_heads}
        heads = [F.linear(hidden, weights[name]).view(1, -1, n, c.head_dim) for name, n in sizes.items()]
        result = torch.empty(len(hidden), c.num_attention_heads * c.head_dim)
        first = 0
        for length in self._lengths:
            q, k, v = (tensor[:, first : first + length].transpose(1, 2) for tensor in heads)
            cos, sin = (table[:length] for table in self._tables)
            q, k = (rotate(tensor, cos, sin, interleaved=c.rope_interleaved) for tensor in (q, k))
            k, v = (tensor.repeat_interleave(groups, dim=1) for tensor in (k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            result[first : first + length] = mixed[0].transpose(0, 1).flatten(1)
            first += length
        return result

    @staticmethod
    def _gated(hidden: Tensor, weights: dict[str, Tensor]) -> Tensor:
        """What down_proj reads: ``[tokens, intermediate_size]``."""
        gate, up = weights["gate_proj"], weights["up_proj"]
        result = torch.empty(len(hidden), len(gate))
        for piece, out in zip(torch.split(hidden, _TOKENS), torch.split(result, _TOKENS), strict=True):
            torch.mul(F.silu(F.linear(piece, gate), inplace=True), F.linear(piece, up), out=out)
        return result


def _sum_of_products(a: Tensor, b: Tensor) -> Tensor:
    """``a^T b``: float32 ``[columns of a, columns of b]``."""
    return a.T @ b
