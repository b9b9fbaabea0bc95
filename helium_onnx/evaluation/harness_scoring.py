"""Log-probabilities of continuations, over any session.

A session takes several new tokens after a past for one row, so requests run one after the other: in the order of their
tokens, in which neighbours share the longest prefixes (the few-shot examples of a task, the context of a question's
choices), so that a ``PrefixSession`` computes them once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from helium_onnx.errors import ContextOverflowError, GenerationError
from helium_onnx.runtimes.session import Session

#: Scored positions of one call: their logits are [128, vocab_size] float32, 25 MB for 48000 tokens.
_CHUNK = 128


class Score(NamedTuple):
    """``logprob``: natural logarithm of the continuation's probability. ``is_greedy``: each token was the likeliest."""

    logprob: float
    is_greedy: bool


def scores(session: Session, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Iterator[tuple[int, Score]]:
    """Yield (index, score) of each (context ids, continuation ids), in the order in which neighbours share most.

    Both parts hold at least one id. What is longer than the session's context loses its first tokens.

    Raises:
        ContextOverflowError: a continuation alone is longer than the context; before anything is computed.
        GenerationError: the model gave logits that are not numbers.
    """
    inputs = [_input(context, continuation, session.context_length) for context, continuation in requests]
    for index in sorted(range(len(inputs)), key=lambda index: inputs[index].token_ids.tolist()):
        yield index, _run(session, inputs[index])


@dataclass(frozen=True)
class _Input:
    """What the model reads: ``token_ids``, whose last ``len(target_ids)`` positions predict ``target_ids``."""

    token_ids: NDArray[np.int64]
    target_ids: NDArray[np.int64]


def _input(context: Sequence[int], continuation: Sequence[int], context_length: int) -> _Input:
    assert context and continuation
    if len(continuation) > context_length:
        raise ContextOverflowError(
            "A continuation does not fit the context",
            found=f"{len(continuation)} tokens",
            expected=f"at most {context_length}",
            remedy="raise max_length, where the model's own context allows it",
        )
    # The last token is only predicted, so one more than the context fits (as in the harness's own models).
    token_ids = np.array([*context, *continuation][-(context_length + 1) :], np.int64)
    return _Input(token_ids[:-1], token_ids[-len(continuation) :])


def _run(session: Session, request: _Input) -> Score:
    token_ids, target_ids = request.token_ids, request.target_ids
    end = len(token_ids) - len(target_ids) + 1  # of the tokens before the first target
    past = session.new_past(1)
    total = _score(session.run("prefill", token_ids[None, :end], past)[0], target_ids[:1])
    for start in range(end, len(token_ids), _CHUNK):
        logits = session.run("decode", token_ids[None, start : start + _CHUNK], past)[0]
        part = _score(logits, target_ids[start - end + 1 :][:_CHUNK])
        total = Score(total.logprob + part.logprob, total.is_greedy and part.is_greedy)
    return total


def _score(logits: NDArray[np.float32], target_ids: NDArray[np.int64]) -> Score:
    """``logits`` ``[sequence_length, vocab_size]`` against the ids that followed, ``[sequence_length]``."""
    top = logits.max(axis=-1)
    chosen = logits[np.arange(len(target_ids)), target_ids]
    # Sums are in float64: hf's in float32 are off by 0.003 over a page of 2000 tokens (measured), the logits by 0.0003.
    log_sum = np.log(np.exp(logits - top[:, None]).sum(axis=-1, dtype=np.float64))
    logprob = float((chosen.astype(np.float64) - top - log_sum).sum())
    if not math.isfinite(logprob):
        raise GenerationError(
            "The model gave logits that are not numbers",
            found=f"a log-probability of {logprob}",
            remedy="`helium-onnx verify` tells whether the bundle is whole",
        )
    return Score(logprob, bool((logits.argmax(axis=-1) == target_ids).all()))
