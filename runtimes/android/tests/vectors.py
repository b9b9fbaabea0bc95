"""tests/vectors/tokenizer.json in a form that TokenizerVectorsTest reads without a JSON library."""

from __future__ import annotations

import base64
import json
from pathlib import Path


def write(repository: Path, target: Path) -> None:
    """Lines of a kind, a text in base64, and its ids or their SHA-256. The kinds: tests/vectors/write.py."""
    vectors = json.loads((repository / "tests/vectors/tokenizer.json").read_text(encoding="utf-8"))
    rows = []
    for kind in ("texts", "special"):
        rows += [(kind, row["text"], " ".join(map(str, row["ids"]))) for row in vectors[kind]]
    with (repository / "benchmarks/data/valid.jsonl").open(encoding="utf-8") as texts:
        rows += [("lines", json.loads(text)["text"], ids) for text, ids in zip(texts, vectors["lines"], strict=True)]
    lines = [f"{kind}\t{base64.b64encode(text.encode()).decode()}\t{ids}\n" for kind, text, ids in rows]
    target.write_text("".join(lines), encoding="ascii")
