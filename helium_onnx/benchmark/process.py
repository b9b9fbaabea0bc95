"""Run a piece of a measurement in a process of its own, and end that with us."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from helium_onnx.errors import HeliumOnnxError

_PACKAGES = Path(__file__).parents[2]  # where this helium_onnx was imported from
_CODE = """
import sys
from helium_onnx.benchmark.{module} import main
from helium_onnx.errors import HeliumOnnxError
try:
    main(*sys.argv[1:])
except HeliumOnnxError as error:
    sys.exit(error.what)
"""


def run_apart(module: str, *arguments: str, environment: dict[str, str] | None = None) -> Any:
    """What ``main`` of ``helium_onnx.benchmark.<module>``, called with ``arguments``, prints as JSON.

    The process is killed when this one is interrupted. Raises HeliumOnnxError where it fails.
    """
    code = _CODE.format(module=module)
    path = os.pathsep.join(filter(None, (str(_PACKAGES), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, **(environment or {})},
    )
    try:
        out, told = process.communicate()
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode == 0:
        return json.loads(out)
    lines = told.decode(errors="replace").strip().splitlines()
    ended = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
    raise HeliumOnnxError(
        f"the process that measures failed ({module}, {ended})",
        found=lines[-1][:300] if lines else "no message",
        remedy="if it was killed, memory was short: measure less at once (--quick, smaller --past and --batch)",
    )
