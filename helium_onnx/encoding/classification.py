"""Texts to labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from helium_onnx.encoding.text_model import TextModel, as_texts, softmax
from helium_onnx.errors import UsageError


@dataclass(frozen=True)
class Label:
    """One label of a text: ``score`` is its probability (of a regression: the value itself)."""

    label: str
    score: float


class TextClassifier(TextModel):
    """A bundle of the task ``text-classification``."""

    task = "text-classification"

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels' names, in the order of the model's outputs."""
        return self.config.id2label

    @property
    def max_rows(self) -> int | None:
        """1 for a model without ``pad_token_id``: nothing tells where a row ends."""
        return None if self.config.pad_token_id is not None else 1

    @overload
    def classify(  # type: ignore[overload-overlap]  # a str is a sequence of str
        self, texts: str, *, top_k: int | None = 1, truncate: bool = False, batch_tokens: int | None = None
    ) -> list[Label]: ...
    @overload
    def classify(
        self, texts: Sequence[str], *, top_k: int | None = 1, truncate: bool = False, batch_tokens: int | None = None
    ) -> list[list[Label]]: ...
    def classify(
        self,
        texts: str | Sequence[str],
        *,
        top_k: int | None = 1,
        truncate: bool = False,
        batch_tokens: int | None = None,
    ) -> list[Label] | list[list[Label]]:
        """The ``top_k`` likeliest labels (None: all) of each text, the likeliest first; of one str, its list.

        Scores are a softmax over the labels, or, as config.json's ``problem_type`` says, a sigmoid of each
        (``multi_label_classification``) or the outputs themselves (``regression``); ``transformers`` does so too. The
        rest is as in ``EmbeddingModel.embed``.

        Raises:
            UsageError: ``top_k`` is below 1, or there are several texts for a model without ``pad_token_id``.
            And what ``EmbeddingModel.embed`` raises.
        """
        if top_k is not None and top_k < 1:
            raise UsageError("top_k is out of range", found=top_k, expected="at least 1, or None for all labels")
        listed, alone = as_texts(texts)
        if len(listed) > 1 and self.max_rows == 1:
            raise UsageError(
                "this model cannot classify several texts at once",
                found=f"{len(listed)} texts, and no pad_token_id in the model's config.json",
                expected="one text a call, or a model that has one",
                remedy="call classify for each text, or set pad_token_id in the checkpoint's config.json and export it "
                "anew",
            )
        ids = self._ids(listed, truncate=truncate)
        ranked = self._run(ids, lambda _, logits: self._rank(logits, top_k), batch_tokens)
        return ranked[0] if alone else ranked

    def _rank(self, logits: NDArray[np.float32], top_k: int | None) -> list[Label]:
        scores = self._scores(logits)
        order = np.argsort(-scores, kind="stable")[:top_k]  # of equals the first, whatever there are beside them
        return [Label(self.labels[i], float(scores[i])) for i in order]

    def _scores(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        kind = self.config.problem_type
        if kind == "regression":
            return logits
        if kind == "multi_label_classification" or (kind is None and len(logits) == 1):
            # In the form that cannot overflow, whatever the sign.
            scores: NDArray[np.float32] = 0.5 * (1 + np.tanh(0.5 * logits))
            return scores
        return softmax(logits)
