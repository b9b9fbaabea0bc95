"""The samples run as their docstrings say. (samples/app is run from the wheel in test_packaging.py.)"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_quickstart() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "samples/quickstart.py"], capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "To insert a table in a text document, " in done.stdout
    assert "Pour insérer un tableau, " in done.stdout
    assert "tokens/s" in done.stdout
