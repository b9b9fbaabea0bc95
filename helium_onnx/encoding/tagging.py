"""Texts to entities: a label for each token, put together to spans of characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args, overload

import numpy as np
from numpy.typing import NDArray

from helium_onnx.encoding.text_model import TextModel, as_texts, softmax
from helium_onnx.errors import UsageError

Aggregation: TypeAlias = Literal["simple", "none", "first", "average", "max"]
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)
#: The label of what is no entity, as in all corpora that spell labels ``B-PER``, ``I-PER``.
OUTSIDE = "O"


@dataclass(frozen=True)
class Entity:
    """Characters ``start`` to ``end`` of a text, which are ``text``, with their label and its probability."""

    label: str
    score: float
    start: int
    end: int
    text: str


class TokenClassifier(TextModel):
    """A bundle of the task ``token-classification``."""

    task = "token-classification"

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels' names, in the order of the model's outputs."""
        return self.config.id2label

    @overload
    def tag(  # type: ignore[overload-overlap]  # a str is a sequence of str
        self,
        texts: str,
        *,
        aggregation: Aggregation = "simple",
        truncate: bool = False,
        batch_tokens: int | None = None,
    ) -> list[Entity]: ...
    @overload
    def tag(
        self,
        texts: Sequence[str],
        *,
        aggregation: Aggregation = "simple",
        truncate: bool = False,
        batch_tokens: int | None = None,
    ) -> list[list[Entity]]: ...
    def tag(
        self,
        texts: str | Sequence[str],
        *,
        aggregation: Aggregation = "simple",
        truncate: bool = False,
        batch_tokens: int | None = None,
    ) -> list[Entity] | list[list[Entity]]:
        """The entities of each text, in its order; of one str, its list. Characters labelled ``O`` are in none.

        ``aggregation``, named as in transformers' pipeline: ``none`` gives each token with its own label. The others
        put neighbours of one label together (``B-`` begins an entity, ``I-`` goes on; labels without either go on)
        under the mean of their scores: ``simple`` by tokens; ``first``, ``average`` and ``max`` by words, which then
        have one label each: that of their first token, of their tokens' mean scores, or of the token with the highest
        score. A word begins after white space. The rest is as in ``EmbeddingModel.embed``.

        Raises:
            UsageError: there is no such aggregation.
            And what ``EmbeddingModel.embed`` raises.
        """
        if aggregation not in AGGREGATIONS:
            raise UsageError("there is no such aggregation", found=repr(aggregation), expected=", ".join(AGGREGATIONS))
        listed, alone = as_texts(texts)
        encoded = [self.tokenizer.encode_with_offsets(text) for text in listed]
        ids = [self._fitting(ids, place, truncate) for place, (ids, _) in enumerate(encoded)]

        def take(place: int, logits: NDArray[np.float32]) -> list[Entity]:
            scores = softmax(logits[: len(ids[place])])
            spans = [
                _Span(start, end, row)
                for (start, end), row in zip(encoded[place][1][: len(ids[place])], scores, strict=True)
                if start < end
            ]
            return list(self._entities(listed[place], spans, aggregation))

        found = self._run(ids, take, batch_tokens)
        return found[0] if alone else found

    def _entities(self, text: str, spans: list[_Span], aggregation: Aggregation) -> Iterator[Entity]:
        if aggregation in ("first", "average", "max"):
            spans = [_word(tokens, aggregation) for tokens in _words(text, spans)]
        groups = [[span] for span in spans] if aggregation == "none" else self._groups(spans)
        for group in groups:
            label = self.labels[group[0].best]
            name = label if aggregation == "none" else _part(label)[1]
            if label == OUTSIDE:
                continue
            start, end = group[0].start, group[-1].end
            score = float(np.mean([span.scores[span.best] for span in group]))
            yield Entity(name, score, start, end, text[start:end])

    def _groups(self, spans: list[_Span]) -> list[list[_Span]]:
        """Neighbours of one label."""
        groups: list[list[_Span]] = []
        last = ""
        for span in spans:
            part, name = _part(self.labels[span.best])
            if groups and name == last and part != "B":
                groups[-1].append(span)
            else:
                groups.append([span])
            last = name
        return groups


@dataclass(frozen=True)
class _Span:
    """A token, or a word: its characters, and the probabilities of all labels."""

    start: int
    end: int
    scores: NDArray[np.float32]

    @property
    def best(self) -> int:
        return int(self.scores.argmax())


def _part(label: str) -> tuple[str, str]:
    """``B-PER`` is ``B`` and ``PER``; a label in no such form goes on: ``I``, and itself."""
    part, dash, name = label.partition("-")
    return (part, name) if dash and part in ("B", "I") else ("I", label)


def _words(text: str, spans: list[_Span]) -> Iterator[list[_Span]]:
    """Tokens of one word each."""
    word: list[_Span] = []
    for span in spans:
        begins = span.start == 0 or text[span.start - 1].isspace() or text[span.start].isspace()
        if word and begins:
            yield word
            word = []
        word.append(span)
    if word:
        yield word


def _word(tokens: list[_Span], aggregation: Aggregation) -> _Span:
    """One span for all tokens of a word."""
    scores = tokens[0].scores
    if aggregation == "average":
        scores = np.mean([token.scores for token in tokens], axis=0)
    elif aggregation == "max":
        scores = max(tokens, key=lambda token: float(token.scores.max())).scores
    return _Span(tokens[0].start, tokens[-1].end, scores)
