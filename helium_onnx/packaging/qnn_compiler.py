"""Compile graphs for Qualcomm's NPU, in a process of its own.

The compiler is a native library that works for minutes on a large model, takes gigabytes, and prints on stdout. A
process can be ended by Ctrl-C in the midst of it, gives all memory back, and when it dies, that is an error to tell.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helium_onnx import errors
from helium_onnx.bundle import Bundle
from helium_onnx.errors import HeliumOnnxError, ProviderError, ResourceError
from helium_onnx.progress import ProgressCallback, ProgressEvent
from helium_onnx.runtimes.session import Phase

MODULE = "helium_onnx.packaging.qnn_compiler_process"


def compile_graphs(
    bundle: Bundle,
    paths: Mapping[Phase, Path],
    provider_options: Mapping[str, str],
    *,
    share_weights: bool,
    progress: ProgressCallback,
) -> None:
    """Compile the graphs of ``bundle`` to ``paths``, a binary beside each, or one for all with ``share_weights``.

    Raises:
        ProviderError: the compiler does not load, does not take a graph whole, or dies.
        ResourceError: it was killed, as the system does where memory is short.
        OSError: (ENOSPC) a binary cannot be written.
        And what loading a graph raises.
    """
    job = {
        "bundle": str(bundle.path.resolve()),
        "paths": {phase: str(path.resolve()) for phase, path in paths.items()},
        "provider_options": dict(provider_options),
        "share_weights": share_weights,
    }
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=printed,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)},
            start_new_session=True,  # a terminal's Ctrl-C is for this process, which then ends the other
        )
        assert process.stdin is not None and process.stdout is not None
        finished = False
        try:
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()  # and not closed: its end tells the compiler that this process is gone
            for line in process.stdout:
                report = json.loads(line)
                if "compiling" in report:
                    progress(ProgressEvent("compile", report["compiling"]))
                elif "error" in report:
                    raise _told(report["error"])
                else:
                    finished = True
            code = process.wait()
        except BrokenPipeError:
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # what was buffered for a process that is gone
                    stream.close()
        if not finished or code:
            printed.seek(0)
            raise _died(code, printed.read().decode("utf-8", "replace"))


def _told(error: dict[str, Any]) -> BaseException:
    """What the other process raised."""
    if error["kind"] == "disk":
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), error["what"])
    kind = getattr(errors, error["kind"], HeliumOnnxError)
    told: HeliumOnnxError = kind(
        error["what"], found=error["found"], expected=error["expected"], remedy=error["remedy"]
    )
    return told


def _died(code: int, printed: str) -> HeliumOnnxError:
    """What to say of a process that ended without a word. ``code`` is that of subprocess: -9 after SIGKILL."""
    last = (printed.strip().splitlines() or ["nothing printed"])[-1][:300]
    if code == -signal.SIGKILL:
        return ResourceError(
            "the compiler was killed",
            found="SIGKILL, as the system does where memory is short",
            expected="free memory of several times the weights",
            remedy="close other programs, or compile on a machine with more memory",
        )
    ending = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return ProviderError(
        "the compiler of onnxruntime-qnn died",
        found=f"{ending}: {last}",
        remedy="please report it, with the recipe and the size of the model",
    )
