"""A worker of main_job.py: loads a bundle, then measures on request. One JSON object a line, in and out."""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from helium_onnx.bundle import Bundle
from helium_onnx.runtimes.onnxruntime_session import OnnxRuntimeSession


def main() -> None:
    path, threads, context = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    session = OnnxRuntimeSession(Bundle.open(path), threads=threads, context_length=context)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        ids = np.asarray(request["ids"], np.int64)[None]
        past = session.new_past(1)
        start = time.perf_counter()
        token = int(session.run("prefill", ids, past)[0, -1].argmax())
        prefill = time.perf_counter() - start
        steps = []
        for _ in range(request["new"]):
            start = time.perf_counter()
            token = int(session.run("decode", np.array([[token]]), past)[0, -1].argmax())
            steps.append(time.perf_counter() - start)
        print(json.dumps({"prefill": prefill, "steps": steps}), flush=True)


if __name__ == "__main__":
    main()
