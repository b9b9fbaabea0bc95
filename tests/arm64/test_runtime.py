"""The runtime's own tests on ARM64: those that need neither torch nor this machine's processor, in the ARM64 Python."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import environment
import pytest
from environment import A76

#: Files, and what pytest's -k takes of them. Left out is what exports for minutes, and pure Python that takes long.
PARTS = {
    "generation": (("test_greedy.py", "test_language_model.py", "test_loop.py"), "not test_nothing_else_is_different"),
    "runtimes": (
        ("test_onnxruntime_session.py", "test_initializer_order.py"),
        "order or decode_of_four or set_back or prefill_after or stays_in_place or buffers_are_kept",
    ),
}


@pytest.mark.parametrize("part", PARTS)
def test_they_pass_on_arm64(part: str) -> None:
    files, chosen = PARTS[part]
    variables = environment.environment(tests=True)
    variables["PYTHONPATH"] += f":{Path(__file__).with_name('within')}"
    # No compiler: tests that find one expect this checkout's library of kernels, which is of this processor.
    variables |= {"HELIUM_OUTSIDE_PYTHON": sys.executable, "CXX": "no-compiler"}
    done = subprocess.run(
        [
            *(str(A76.python), "-m", "pytest", "-p", "no:cacheprovider", "-p", "exports_by_host", "--durations=3"),
            *("-rs", *(f"tests/{part}/{file}" for file in files), "-k", chosen),
        ],
        capture_output=True,
        text=True,
        env=variables,
        cwd=environment.REPOSITORY,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 0, done.stdout
    print(done.stdout)
