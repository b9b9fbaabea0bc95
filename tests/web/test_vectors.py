"""The vectors that other runtimes are held against are what this package gives today."""

from __future__ import annotations

import importlib.util
from pathlib import Path

VECTORS = Path(__file__).parents[1] / "vectors"


def test_the_vectors_are_what_python_gives() -> None:
    spec = importlib.util.spec_from_file_location("write_vectors", VECTORS / "write.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = dict(module.written())
    assert {path.name for path in VECTORS.glob("*.json")} == set(written)
    for name, text in written.items():
        assert (VECTORS / name).read_text(encoding="utf-8") == text, f"run tests/vectors/write.py: {name} has changed"
