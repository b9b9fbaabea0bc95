"""What one load over ONNX Runtime's kernels says of the cache of prepacked weights, and the tokens it leads to."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import helium_onnx
from helium_onnx.progress import ProgressEvent

PROMPT = "Pour insérer un tableau"
BUILD, CHECK = "prepacking the weights", "checking the bundle's digests"


@dataclasses.dataclass
class Loaded:
    """What one load said of the cache, and the tokens of the model that it gave."""

    said: list[str]
    token_ids: tuple[int, ...]

    def __contains__(self, text: str) -> bool:
        return any(text in item for item in self.said)


def load(bundle: Path, cache_dir: Path | None, cache: bool | None = True) -> Loaded:
    events: list[ProgressEvent] = []
    with helium_onnx.load(
        bundle, kernels="onnxruntime", cache=cache, cache_dir=cache_dir, progress=events.append
    ) as model:
        token_ids = model.generate(PROMPT, max_new_tokens=12)[0].token_ids
    return Loaded([event.item for event in events if event.stage == "cache"], token_ids)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())
