"""What parity tests share: models of ``transformers`` to compare with, padded batches, and graphs run in plain
ONNX Runtime, without any code of our runtimes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
import tiny
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from helium_onnx import contract
from helium_onnx.config import HeliumConfig
from helium_onnx.recipe import Recipe

#: Of the logits' scale. float32 sums in another order leave some 1e-6.
TOLERANCE = 1e-4
#: What a flipped RoPE must exceed: a hundred times the tolerance.
MUTATION = 100 * TOLERANCE

Padding = Literal["left", "right"]
#: Layer, keys and values ``[batch, kv_heads, tokens, head_dim]`` to what a cache keeps of them.
Rounded = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]


def make_model(
    model_type: str, *, layers: int = 2, heads: int = 4, kv_heads: int = 2, tie: bool = False, std: float = 0.25
) -> Any:
    """A random float32 model of ``transformers`` whose weights are large enough for a wrong RoPE to show."""
    kind = {"helium": transformers.HeliumConfig, "llama": transformers.LlamaConfig}[model_type]
    config = kind(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=64 // heads,
        max_position_embeddings=256,
        rms_norm_eps=1e-8 if model_type == "helium" else 1e-6,
        rope_parameters={"rope_theta": 100_000.0 if model_type == "helium" else 20_000.0, "rope_type": "default"},
        tie_word_embeddings=tie,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        attn_implementation="eager",
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    return randomized(model, std)


def randomized(model: Any, std: float) -> Any:
    """The model with weights ``std * normal``, those of norms around 1, so that forgetting them shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = std * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise + 1 if parameter.dim() == 1 else noise)
    return model


def save(model: Any, folder: Path) -> Path:
    """The model as ``transformers`` writes it, with a tokenizer of its vocabulary beside it."""
    model.save_pretrained(folder)
    tiny.write_json(folder / "tokenizer.json", tiny.tokenizer(model.config.vocab_size))
    return folder


def random_ids(rows: int, length: int, seed: int = 1) -> NDArray[np.int64]:
    """Token ids of a vocabulary of 320, no control tokens."""
    return np.random.default_rng(seed).integers(4, 320, (rows, length))


def padded(rows: Sequence[NDArray[np.int64]], side: Padding) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of different length as one batch, and its mask."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), 3, np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    return ids, mask


class RoundedCache(transformers.DynamicCache):
    """A cache of ``transformers`` that keeps of rotated keys and values what ``rounded(layer, keys, values)`` gives."""

    def __init__(self, rounded: Rounded) -> None:
        super().__init__()
        self._rounded = rounded

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = super().update(
            *self._rounded(layer_idx, key_states, value_states), layer_idx, *args
        )
        return result


def logits_of(model: Any, ids: NDArray[np.int64], rounded: Rounded | None = None) -> NDArray[np.float32]:
    """The reference's logits of one unpadded row: ``[tokens, vocab_size]``; over a rounded cache where one is given."""
    cache = None if rounded is None else RoundedCache(rounded)
    with torch.inference_mode():
        result: NDArray[np.float32] = model(torch.from_numpy(ids)[None], past_key_values=cache).logits[0].numpy()
    return result


def round_inputs(model: Any, recipe: Recipe) -> None:
    """Let each linear layer of a model of ``transformers`` round its input to 8 bits, in the blocks of a recipe's
    weights: what MatMulNBits does at accuracy_level 4, and the kernels of our own.
    """

    def hook(module: torch.nn.Module, args: tuple[Tensor]) -> Tensor:
        size, width = module.block_size, args[0].shape[-1]
        blocks = torch.nn.functional.pad(args[0], (0, -width % size)).unflatten(-1, (-1, size))
        return rounded(blocks).flatten(-2)[..., :width]

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.block_size = recipe.quantization.settings_of(name).block_size
            module.register_forward_pre_hook(hook)


def rounded(x: Tensor) -> Tensor:
    """``x`` in 8 bits, with one scale along the last axis."""
    peak = x.abs().amax(-1, keepdim=True)
    return (x * (127 / peak)).round() * (peak / 127)


def error(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """max |ours - theirs| as a part of max |theirs|."""
    assert ours.shape == theirs.shape
    assert np.isfinite(theirs).all()
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


class Graphs:
    """The graphs of an exported folder, each in a plain session; ``cache`` is the type of keys and values."""

    def __init__(
        self,
        folder: Path,
        config: HeliumConfig,
        only: Iterable[contract.Graph] = contract.GRAPHS,
        cache: str = "float32",
    ) -> None:
        self.config, self.cache = config, np.dtype(cache)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._sessions = {
            graph: ort.InferenceSession(folder / contract.GRAPH_FILES[graph], options, ["CPUExecutionProvider"])
            for graph in only
        }
        kinds = [f".{i}.{kind}" for i in range(config.num_hidden_layers) for kind in ("key", "value")]
        self._past, self._present = ([prefix + kind for kind in kinds] for prefix in ("past_key_values", "present"))

    def past(self, rows: int, length: int = 0) -> list[NDArray[Any]]:
        """An empty past; ``length`` is that of the buffers, for the form that writes in place."""
        shape = (rows, self.config.num_key_value_heads, length, self.config.head_dim)
        # What no token has written must not be read: NaN would show, and int8's largest magnitude as well.
        unwritten = np.nan if self.cache.kind == "f" else -128
        return [np.full(shape, unwritten, self.cache) for _ in self._past]

    def run(
        self,
        graph: contract.Graph,
        ids: NDArray[np.int64],
        mask: NDArray[np.int64] | None = None,
        past: list[NDArray[Any]] | None = None,
    ) -> tuple[NDArray[np.float32], list[NDArray[Any]]]:
        """Logits and present; the past is empty by default, and the mask has no padding."""
        past = self.past(len(ids)) if past is None else past
        mask = np.ones((len(ids), past[0].shape[2] + ids.shape[1]), np.int64) if mask is None else mask
        feed = {"input_ids": ids, "attention_mask": mask, **dict(zip(self._past, past, strict=True))}
        logits, *present = self._sessions[graph].run(["logits", *self._present], feed)
        return logits, present

    def run_in_place(
        self,
        graph: contract.Graph,
        ids: NDArray[np.int64],
        lengths: NDArray[np.int64],
        buffers: list[NDArray[Any]],
    ) -> NDArray[np.float32]:
        """Logits of ``ids`` after ``lengths[row]`` tokens; past and present are the same ``buffers``."""
        after = lengths + ids.shape[1]
        mask = (np.arange(after.max()) < after[:, None]).astype(np.int64)
        binding = self._sessions[graph].io_binding()
        shape = (len(ids), 1 if graph == "prefill" else ids.shape[1], self.config.vocab_size)
        logits = np.full(shape, np.nan, np.float32)
        ids = np.ascontiguousarray(ids)
        for name, array in (("input_ids", ids), ("attention_mask", mask)):
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        for past, present, buffer in zip(self._past, self._present, buffers, strict=True):
            binding.bind_input(past, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
            binding.bind_output(present, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
        self._sessions[graph].run_with_iobinding(binding)
        return logits
