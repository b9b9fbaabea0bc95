"""The reference: the PyTorch model in float32, one layer in memory at a time.

All texts pass through layer 0, then all through layer 1, and so on: a 2 B model needs one layer (0.36 GB in float32)
and the texts' hidden states instead of 8.7 GB. Logits, the largest thing of all, are made from the final hidden states
a few positions at a time, where they are compared.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import IO, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from helium_onnx.checkpoint import EMBEDDING, HEAD, NORM, Checkpoint
from helium_onnx.config import HeliumConfig
from helium_onnx.errors import ResourceError
from helium_onnx.modeling import DecoderLayer, rms_norm, rope_tables
from helium_onnx.progress import ProgressCallback, ProgressEvent

#: Hidden states of more bytes than this live in a file, whose pages the system may drop.
LARGEST_IN_MEMORY = 512 << 20


class WeightSource(Protocol):
    """Weights by the checkpoint's names: a ``Checkpoint``, or a bundle read back (``BundleWeights``)."""

    def read(self, name: str) -> NDArray[np.float32]: ...


class HiddenStates:
    """float32 ``[tokens, hidden_size]`` for each of several texts, one after the other in one array.

    Raises ResourceError where they need a file and the disk has no room for it.
    """

    def __init__(self, lengths: Sequence[int], hidden_size: int) -> None:
        self.offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        shape = (int(self.offsets[-1]), hidden_size)
        size = 4 * shape[0] * shape[1]
        self._rows: NDArray[np.float32]
        if size > LARGEST_IN_MEMORY:
            self._rows = np.memmap(_nameless_file(size), np.float32, "r+", shape=shape)
        else:
            self._rows = np.empty(shape, np.float32)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        """The rows of text ``index``: a view, to read and to write."""
        return self._rows[self.offsets[index] : self.offsets[index + 1]]


def _nameless_file(size: int) -> IO[bytes]:
    """A file of ``size`` bytes that no folder lists: it is gone when its mapping is, however the process ends."""
    file = tempfile.TemporaryFile(prefix="helium-onnx-")  # noqa: SIM115  the mapping outlives this function
    try:
        # Room that turns out to be missing when a mapped page is written would end the process (SIGBUS).
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise ResourceError(
            f"no room for hidden states in {tempfile.gettempdir()}",
            found=error.strerror,
            expected=f"{size / 1e9:.2f} GB",
            remedy="measure fewer texts (--limit), or set TMPDIR to a folder on a larger disk",
        ) from error
    return file


class Head:
    """Final norm and head of the reference: hidden states to logits."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        config = checkpoint.config
        tied = config.tie_word_embeddings
        self._eps = config.rms_norm_eps
        self._norm = torch.from_numpy(checkpoint.read(NORM))
        self._head = torch.from_numpy(checkpoint.read(EMBEDDING if tied else HEAD))

    def __call__(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits float32 ``[positions, vocab_size]`` of the last layer's output ``[positions, hidden_size]``."""
        with torch.inference_mode():
            x = rms_norm(torch.from_numpy(np.array(hidden)), self._norm, self._eps)
            logits: NDArray[np.float32] = F.linear(x, self._head).numpy()
        return logits


class LayerRunner:
    """Runs one decoder layer over one text, from the empty past; the tables are made once."""

    def __init__(self, config: HeliumConfig) -> None:
        self._config = config
        self._cos, self._sin = rope_tables(config)
        nothing = torch.zeros(1, config.num_key_value_heads, 0, config.head_dim)
        self._past = (nothing, nothing)

    def load(self, weights: WeightSource, index: int) -> DecoderLayer:
        """Layer ``index`` with its weights in float32."""
        return DecoderLayer.load(self._config, weights.read, index)

    def run(self, layer: DecoderLayer, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """The layer's output ``[tokens, hidden_size]``, residual included, in an array of its own."""
        with torch.inference_mode():
            x: Tensor = torch.from_numpy(np.array(hidden))[None]
            mask = torch.ones(1, x.shape[1], dtype=torch.int64)
            y, _, _ = layer(x, self._past, mask, self._cos, self._sin)
            rows: NDArray[np.float32] = y[0].numpy()
        return rows


def embed(weights: WeightSource, texts: Sequence[Sequence[int]], hidden_size: int) -> HiddenStates:
    """The embeddings of ``texts``, each a sequence of token ids."""
    states = HiddenStates([len(ids) for ids in texts], hidden_size)
    table = weights.read(EMBEDDING)
    for index, ids in enumerate(texts):
        states[index][:] = table[np.asarray(ids, np.int64)]
    return states


def stream(
    checkpoint: Checkpoint, texts: Sequence[Sequence[int]], report: ProgressCallback, *, stage: str = "reference"
) -> HiddenStates:
    """The last layer's output for ``texts``, before the final norm; ``Head`` makes logits of it.

    ``report`` counts bytes of weights, as far as they have been applied to all texts.
    """
    config = checkpoint.config
    report(ProgressEvent(stage, "embedding"))
    states = embed(checkpoint, texts, config.hidden_size)
    runner = LayerRunner(config)
    total = 4 * config.num_parameters
    for index in range(config.num_hidden_layers):
        layer = runner.load(checkpoint, index)
        for number in range(len(texts)):
            states[number][:] = runner.run(layer, states[number])
            share = (index + (number + 1) / len(texts)) / config.num_hidden_layers
            item = f"layer {index + 1} of {config.num_hidden_layers}, text {number + 1} of {len(texts)}"
            report(ProgressEvent(stage, item, int(share * total), total))
        del layer
    return states
