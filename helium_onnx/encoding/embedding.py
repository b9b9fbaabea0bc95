"""Texts to vectors: the hidden states behind the last norm, pooled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, get_args, overload

import numpy as np
from numpy.typing import NDArray

from helium_onnx.encoding.text_model import TextModel, as_texts
from helium_onnx.errors import UsageError

Pooling: TypeAlias = Literal["mean", "last", "none"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


class EmbeddingModel(TextModel):
    """A bundle of the task ``feature-extraction``."""

    task = "feature-extraction"

    @overload
    def embed(  # type: ignore[overload-overlap]  # a str is a sequence of str
        self,
        texts: str,
        *,
        pooling: Pooling = "mean",
        normalize: bool = True,
        truncate: bool = False,
        batch_tokens: int | None = None,
    ) -> NDArray[np.float32]: ...
    @overload
    def embed(
        self,
        texts: Sequence[str],
        *,
        pooling: Literal["mean", "last"] = "mean",
        normalize: bool = True,
        truncate: bool = False,
        batch_tokens: int | None = None,
    ) -> NDArray[np.float32]: ...
    @overload
    def embed(
        self,
        texts: Sequence[str],
        *,
        pooling: Literal["none"],
        normalize: bool = True,
        truncate: bool = False,
        batch_tokens: int | None = None,
    ) -> list[NDArray[np.float32]]: ...
    def embed(
        self,
        texts: str | Sequence[str],
        *,
        pooling: Pooling = "mean",
        normalize: bool = True,
        truncate: bool = False,
        batch_tokens: int | None = None,
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Vectors of ``texts``, float32 ``[texts, hidden_size]``; of one str ``[hidden_size]``.

        ``pooling``: the ``mean`` over all tokens (``<s>`` included, padding not), the ``last`` token's, or ``none``:
        each token's, a list of ``[tokens, hidden_size]`` (of one str: one array). ``normalize`` gives each vector the
        length 1. A text beyond the context is an error, or is cut with ``truncate``. At most ``batch_tokens`` tokens
        run together (default 512, on a GPU 4096); what runs beside a text does not change its vector but for rounding.

        Raises:
            UsageError: there is no such pooling, or ``batch_tokens`` is below 1.
            PromptError: a text is not one that can be tokenized.
            ContextOverflowError: a text does not fit the context.
            GenerationError: the model gave numbers that are none.
        """
        if pooling not in POOLINGS:
            raise UsageError("there is no such pooling", found=repr(pooling), expected=", ".join(POOLINGS))
        listed, alone = as_texts(texts)
        ids = self._ids(listed, truncate=truncate)
        pool = _POOL[pooling]

        def take(place: int, states: NDArray[np.float32]) -> NDArray[np.float32]:
            vectors = pool(states[: len(ids[place])])
            return unit(vectors) if normalize else vectors

        vectors = self._run(ids, take, batch_tokens)
        if alone:
            return vectors[0]
        if pooling == "none":
            return vectors
        return np.stack(vectors) if vectors else np.zeros((0, self.config.hidden_size), np.float32)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """``vectors`` ``[..., size]`` at length 1; zeros stay zeros."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: NDArray[np.float32] = vectors / np.maximum(length, np.finfo(np.float32).tiny)
    return scaled


_POOL: dict[Pooling, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "mean": lambda states: states.mean(axis=0),
    "last": lambda states: states[-1].copy(),  # not a view that keeps the whole batch
    "none": lambda states: states.copy(),
}
