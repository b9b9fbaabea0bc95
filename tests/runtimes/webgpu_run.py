"""Run by test_webgpu_session.py in a process of its own: one bundle on WebGPU and on the CPU, what came out as JSON."""

from __future__ import annotations

import json
import sys

import numpy as np

import helium_onnx
from helium_onnx.bundle import Bundle
from helium_onnx.runtimes.onnxruntime_session import OnnxRuntimeSession
from helium_onnx.runtimes.webgpu_session import WebGpuSession

CONTEXT = 128


def main(path: str, new_tokens: int) -> None:
    bundle = Bundle.open(path)
    rng = np.random.default_rng(0)
    prompt = rng.integers(10, 5900, 1 + 2 * 31).astype(np.int64)  # three prefill calls, the last of one token
    gpu = WebGpuSession(bundle, context_length=CONTEXT)
    cpu = OnnxRuntimeSession(bundle, context_length=CONTEXT, cache=False)
    tokens: dict[str, list[int]] = {}
    logits = {}
    slots = {}
    for name, session in (("gpu", gpu), ("cpu", cpu)):
        past = session.new_past(1)
        step = session.run("prefill", prompt[None], past).copy()
        steps, chosen = [step[0, -1]], []
        for _ in range(new_tokens):
            chosen.append(int(steps[-1].argmax()))
            steps.append(session.run("decode", np.array([[chosen[-1]]]), past)[0, -1].copy())
        tokens[name], logits[name], slots[name] = chosen, np.stack(steps), past.read_slots(0, 63)
    # Two rows of different lengths, and slots that go out and in again.
    past = gpu.new_past(2)
    gpu.run("prefill", prompt[None, :5], past.row(0))
    past.row(1).write_slots([slot[:, :31] for slot in slots["gpu"]])
    both = gpu.run("decode", np.array([[7], [8]]), past)
    alone = []
    for ids in ([*prompt[:5], 7], [*prompt[:31], 8]):
        one = cpu.new_past(1)
        cpu.run("prefill", np.array([ids[:-1]]), one)
        alone.append(cpu.run("decode", np.array([ids[-1:]]), one)[0].copy())
    json.dump(
        {
            "tokens": tokens,
            "difference": float(np.abs(logits["gpu"] - logits["cpu"]).max()),
            "margin": [float(top[-1] - top[-2]) for top in np.sort(logits["cpu"], axis=1)],
            "slots": max(float(np.abs(a - b).max()) for a, b in zip(slots["gpu"], slots["cpu"], strict=True)),
            "rows": float(np.abs(both - np.stack(alone)).max()),
            "lengths": past.lengths.tolist(),
            "chunk": gpu.exact_split,
            "placement": helium_onnx.inspect(path, provider="webgpu"),
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
