"""A plugin for pytest on ARM64: what a test exports is exported by the Python of the machine outside, which has torch.

qemu starts the programs of both processors.
"""

from __future__ import annotations

import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import helium_onnx
from helium_onnx.bundle import Bundle

_OUTSIDE = os.environ["HELIUM_OUTSIDE_PYTHON"]


def export(checkpoint: str | os.PathLike[str], out: str | os.PathLike[str], **options: Any) -> Bundle:
    """As ``helium_onnx.export``. Raises RuntimeError with what it said."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [_OUTSIDE, str(Path(__file__).with_name("export.py"))]
    job = pickle.dumps((str(checkpoint), str(out), options))
    done = subprocess.run(command, input=job, capture_output=True, env=variables)
    if done.returncode:
        raise RuntimeError(done.stderr.decode(errors="replace"))
    return Bundle.open(out)


helium_onnx.export = export
