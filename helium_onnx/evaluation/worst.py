"""The positions where a bundle is furthest from the reference, in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from helium_onnx.evaluation.fidelity import Scores
from helium_onnx.evaluation.report import WorstPosition
from helium_onnx.texts import Window
from helium_onnx.tokenizer import Tokenizer

COUNT = 10
_CONTEXT_TOKENS = 24


def worst_positions(
    windows: Sequence[Window], scores: Sequence[Scores], tokenizer: Tokenizer
) -> tuple[WorstPosition, ...]:
    """The ``COUNT`` positions of largest KL divergence, one that is not finite before all others."""
    kl = np.concatenate([score.kl for score in scores])
    ends = np.cumsum([len(score) for score in scores])
    # A stable order: equal divergences stay in the order of the text.
    order = np.argsort(-np.nan_to_num(kl, nan=np.inf), kind="stable")[:COUNT]
    rows = []
    for flat in order:
        index = int(np.searchsorted(ends, flat, side="right"))
        window, score = windows[index], scores[index]
        position = int(flat - (ends[index] - len(score)))

        def text(token_id: int) -> str:
            return tokenizer.id_to_text(token_id) if token_id >= 0 else "(not finite)"

        rows.append(
            WorstPosition(
                lang=window.lang,
                line=window.line,
                position=position,
                kl=float(score.kl[position]),
                max_abs=float(score.max_abs[position]),
                context=tokenizer.decode(window.ids[max(0, position + 1 - _CONTEXT_TOKENS) : position + 1]),
                target=text(int(score.target[position])),
                reference=text(int(score.reference_top1[position])),
                bundle=text(int(score.top1[position])),
            )
        )
    return tuple(rows)
