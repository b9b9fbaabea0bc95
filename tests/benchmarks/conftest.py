"""The benchmarks are scripts: their folders go on the path as when they run."""

from __future__ import annotations

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
for folder in (BENCHMARKS, BENCHMARKS / "converters", BENCHMARKS / "workers", BENCHMARKS / "cuda_workers"):
    sys.path.append(str(folder))
