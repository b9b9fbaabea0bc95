"""A worker of main_job.py: from the start of the process to the start of the first token, and what memory it took."""

from __future__ import annotations

import time

START = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402

from serving import memory_mb  # noqa: E402

import helium_onnx  # noqa: E402
from helium_onnx.runtimes.native_session import NativeSession  # noqa: E402
from helium_onnx.runtimes.onnxruntime_session import OnnxRuntimeSession  # noqa: E402


def main() -> None:
    cache = sys.argv[2] == "cache"
    imported = time.perf_counter()
    before = memory_mb()
    model = helium_onnx.load(sys.argv[1], cache=cache)
    ready = time.perf_counter()  # the next line starts the first token: the prompt is tokenized and prefilled
    session = model.session
    assert isinstance(session, (NativeSession, OnnxRuntimeSession))
    session.wait()
    both = time.perf_counter()
    print(
        json.dumps(
            {
                "import_seconds": imported - START,
                "to_first_token_start_seconds": ready - START,
                "both_graphs_seconds": both - START,
                "before_load_mb": before,
                "both_graphs_mb": memory_mb(),
            }
        )
    )


if __name__ == "__main__":
    main()
