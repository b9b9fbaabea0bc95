"""The runtimes that are measured side by side: one file each, which says how it is installed, fed and set."""

from __future__ import annotations

from contenders import genai, llamacpp, openvino, optimum_ort, ours, transformers
from contenders.model import Contender

CONTENDERS: tuple[Contender, ...] = (
    *ours.ROWS,
    *genai.ROWS,
    *llamacpp.ROWS,
    *openvino.ROWS,
    *optimum_ort.ROWS,
    *transformers.ROWS,
)
