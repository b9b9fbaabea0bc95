"""Generate as a program of its own, on this processor or on ARM64: a job as JSON on stdin, its answer on stdout.

A job is ``{"bundle", "kernels", "requests": [{"prompts", and options of generate}], "logits": [token ids, ...]}``. The
answer has the tokens of each request's prompts, and for each row of ``logits`` those of prefill, as base64 of float32.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import platform
import sys

import numpy as np

import helium_onnx
from helium_onnx import kernels


def main() -> None:
    job = json.load(sys.stdin)
    with helium_onnx.load(job["bundle"], kernels=job["kernels"], cache=False, threads=1) as model:
        tokens = []
        for request in job["requests"]:
            prompts = request.pop("prompts")
            result = model.generate(prompts, speculation="off", ignore_eos=True, **request)
            tokens.append([list(one.token_ids) for one in result])
        logits = []
        for ids in job["logits"]:
            row = model.session.run("prefill", np.array([ids]), model.session.new_past(1))[0, -1]
            logits.append(base64.b64encode(row.astype("<f4").tobytes()).decode())
        answer = {
            "machine": platform.machine(),
            "session": type(model.session).__name__,
            "instruction_set": kernels.instruction_set(),
            "torch": importlib.util.find_spec("torch") is not None,
            "tokens": tokens,
            "logits": logits,
        }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
