"""What runs on the device meanwhile: kernels by name, from CUPTI through torch.profiler."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

#: What the trace calls work of the device.
_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


def device_memory() -> tuple[int, int] | None:
    """Free and all bytes of the device; None without torch or a device."""
    try:
        import torch

        return torch.cuda.mem_get_info() if torch.cuda.is_available() else None
    except ImportError:
        return None


def traced(work: Callable[[], Any], steps: int) -> dict[str, Any]:
    """Run ``work`` under the profiler. ``steps`` is how many steps it is, by which everything is divided."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        work()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        trace.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return kernels(events, steps)


def kernels(events: Iterable[Mapping[str, Any]], steps: int) -> dict[str, Any]:
    """Of a trace in Chrome's form: ``rows`` (name, calls and microseconds a step), the largest first.

    ``busy_us`` is the time a step in which the device did anything, ``span_us`` from the first work to the last: what
    lies between the two are gaps. Work at the same time counts once in ``busy_us``.
    """
    found: dict[str, list[float]] = {}
    spans = []
    for event in events:
        if event.get("cat") in _DEVICE and event.get("ph") == "X":
            found.setdefault(str(event["name"]), []).append(float(event["dur"]))
            spans.append((float(event["ts"]), float(event["ts"]) + float(event["dur"])))
    if not spans:
        raise RuntimeError("the profiler saw no kernel")
    spans.sort()
    busy, end = 0.0, spans[0][0]
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    rows = [
        {"name": name, "calls": len(times) / steps, "us": sum(times) / steps}
        for name, times in sorted(found.items(), key=lambda item: -sum(item[1]))
    ]
    return {"steps": steps, "busy_us": busy / steps, "span_us": (end - spans[0][0]) / steps, "rows": rows}
