"""What the models of all three tasks share: texts to tokens, tokens to batches, batches to results in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from helium_onnx.config import HeliumConfig
from helium_onnx.encoding.batches import by_length, padded
from helium_onnx.errors import ContextOverflowError, GenerationError, PromptError, TokenizerError
from helium_onnx.runtimes.session import WholeTexts
from helium_onnx.tasks import Task
from helium_onnx.tokenizer import Tokenizer

_Result = TypeVar("_Result")
#: A token is padded by this where the model has no id for it: masked, and behind all that could see it.
_ANY_ID = 0


class TextModel:
    """A loaded bundle of a task without generation. ``helium_onnx.load`` makes it; close it, or use it in ``with``."""

    task: ClassVar[Task]

    def __init__(self, session: WholeTexts, tokenizer: Tokenizer, config: HeliumConfig) -> None:
        """Raises TokenizerError where session and tokenizer have vocabularies of different sizes."""
        if session.vocab_size != tokenizer.vocab_size:
            raise TokenizerError(
                "The tokenizer does not fit the model",
                found=f"{tokenizer.vocab_size} ids",
                expected=f"{session.vocab_size}, the model's vocab_size",
                remedy="take the tokenizer.json of the same bundle",
            )
        self.session, self.tokenizer, self.config = session, tokenizer, config

    @property
    def max_rows(self) -> int | None:
        """The most texts that one call of the graph takes; None for any number."""
        return None

    def close(self) -> None:
        """Free the session's memory."""
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ids(self, texts: Sequence[str], *, truncate: bool) -> list[list[int]]:
        """Token ids of each text, ``<s>`` first."""
        return [self._fitting(self.tokenizer.encode(text), place, truncate) for place, text in enumerate(texts)]

    def _fitting(self, ids: list[int], place: int, truncate: bool) -> list[int]:
        limit = self.session.context_length
        if len(ids) > limit and not truncate:
            raise ContextOverflowError(
                f"text {place + 1} does not fit the context",
                found=f"{len(ids)} tokens",
                expected=f"at most {limit}",
                remedy="cut it, or let it be cut: truncate",
            )
        return ids[:limit]

    def _run(
        self,
        ids: Sequence[Sequence[int]],
        take: Callable[[int, NDArray[np.float32]], _Result],
        batch_tokens: int | None,
    ) -> list[_Result]:
        """``take(place, output)`` of each row, in order; ``output`` is its row of the graph's, padding included."""
        pad = self.config.pad_token_id
        results: dict[int, _Result] = {}
        for batch in by_length([len(row) for row in ids], batch_tokens or self.session.batch_tokens, self.max_rows):
            input_ids, attention_mask = padded([ids[place] for place in batch], _ANY_ID if pad is None else pad)
            outputs = self.session.run(input_ids, attention_mask)
            if not np.isfinite(outputs).all():
                raise GenerationError(
                    "the model gave results that are no numbers",
                    found=f"NaN or infinity for one of {len(batch)} texts",
                    expected="finite numbers",
                    remedy="run helium-onnx verify; if the bundle is whole, export it with a recipe of more range",
                )
            results |= {place: take(place, output) for place, output in zip(batch, outputs, strict=True)}
        return [results[place] for place in range(len(ids))]


def as_texts(texts: str | Sequence[str]) -> tuple[list[str], bool]:
    """The texts, and whether it was one alone. Raises PromptError where one is no str."""
    alone = isinstance(texts, str)
    listed = [texts] if isinstance(texts, str) else list(texts)
    for place, text in enumerate(listed):
        if not isinstance(text, str):
            raise PromptError(f"text {place + 1} is no text", found=f"a {type(text).__name__}", expected="a str")
    return listed, alone


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Over the last axis, in float32."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores: NDArray[np.float32] = shifted / shifted.sum(axis=-1, keepdims=True)
    return scores
