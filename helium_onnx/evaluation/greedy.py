"""Where a bundle's greedy text parts from the reference's.

The reference generates nothing: a model that is streamed layer by layer would be read once a token. Instead the bundle
writes its text first, and the reference then reads prompt and text in one pass. At each position it says which token
it would have chosen after what stands before. The first position where that is another token is exactly where both
greedy texts part: up to there they are equal, so the reference's own text would have had the same beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from helium_onnx.evaluation.reference import Head, HiddenStates
from helium_onnx.runtimes.session import Session
from helium_onnx.texts import Window

PROMPT_TOKENS = 32
#: Prompts of each language: the beginnings of its first windows.
PROMPTS_A_LANGUAGE = 2


@dataclass(frozen=True)
class Continuation:
    """A bundle's greedy text: ``prompt`` (``<s>`` first) and the ``tokens`` it put after it."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    lang: str | None
    line: int

    @property
    def ids(self) -> tuple[int, ...]:
        return self.prompt + self.tokens


@dataclass(frozen=True)
class GreedyRow:
    """``equal`` of ``tokens`` greedy tokens are the reference's; where they differ, which tokens met.

    ``gap`` is the reference's logit of its own token over that of the bundle's: near 0 it was a close call.
    """

    lang: str | None
    line: int
    tokens: int
    equal: int
    token_id: int | None = None
    reference_token_id: int | None = None
    gap: float | None = None

    @property
    def parts(self) -> bool:
        return self.token_id is not None


def prompts(windows: Sequence[Window]) -> list[Window]:
    """The windows whose beginnings are continued: some of each language."""
    chosen: list[Window] = []
    for window in windows:
        if sum(other.lang == window.lang for other in chosen) < PROMPTS_A_LANGUAGE:
            chosen.append(window)
    return chosen


def continue_greedily(
    session: Session, windows: Sequence[Window], *, max_new_tokens: int, eos_token_ids: Sequence[int]
) -> list[Continuation]:
    """The bundle's greedy text after the beginning of each window, until its eos (kept) or ``max_new_tokens``."""
    continuations = []
    for window in windows:
        prompt = window.ids[:PROMPT_TOKENS]
        past = session.new_past(1)
        logits = session.run("prefill", np.array([prompt], np.int64), past)
        tokens = [int(logits[0, -1].argmax())]
        while len(tokens) < max_new_tokens and tokens[-1] not in eos_token_ids:
            logits = session.run("decode", np.array([tokens[-1:]], np.int64), past)
            tokens.append(int(logits[0, -1].argmax()))
        continuations.append(Continuation(prompt, tuple(tokens), window.lang, window.line))
    return continuations


def divergence(continuation: Continuation, hidden: HiddenStates, index: int, head: Head) -> GreedyRow:
    """Hold text ``index`` of the reference's pass, which is ``continuation``, against what the reference would say."""
    first = len(continuation.prompt) - 1  # the prompt's last position chooses the first token
    logits = head(hidden[index][first : first + len(continuation.tokens)])
    lang, line, count = continuation.lang, continuation.line, len(continuation.tokens)
    for position, token in enumerate(continuation.tokens):
        wanted = int(logits[position].argmax())
        if wanted != token:
            gap = float(logits[position, wanted] - logits[position, token])
            return GreedyRow(lang, line, count, position, token, wanted, gap)
    return GreedyRow(lang, line, count, count)
