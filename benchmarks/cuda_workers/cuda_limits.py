"""The worker that measures what the GPU itself allows: memory's bandwidth and the matrix units, in PyTorch.

Settings: ``device`` for another than cuda, ``copy_bytes`` and ``size`` for smaller ones.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from cuda_serving import serve

#: What is asked of nvidia-smi before and after: whether the clocks were held back says why a figure is low.
_QUERY = (
    "name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu",
    "power.draw", "power.limit", "clocks_throttle_reasons.active",
)  # fmt: skip


class Limits:
    """Each figure is the median of several runs, after some that are not counted."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.device = settings.get("device", "cuda")
        self.bytes = int(settings.get("copy_bytes", 2 << 30))
        self.size = int(settings.get("size", 8192))
        self.about = {"torch": torch.__version__, "cuda": torch.version.cuda, **self._properties()}

    def measure(self, repeats: int) -> dict[str, Any]:
        """``copy`` counts bytes read and written, ``read`` those of a sum; GB/s (1e9). ``matrix`` in TFLOP/s."""
        found: dict[str, Any] = {"clocks": self.clocks()}
        source = torch.ones(self.bytes // 2, dtype=torch.bfloat16, device=self.device)
        target = torch.empty_like(source)
        seconds = self._median(partial(target.copy_, source), repeats)
        found["copy_gigabytes_per_second"] = 2e-9 * self.bytes / seconds
        del target
        words = source.view(torch.int32)
        found["read_gigabytes_per_second"] = 1e-9 * self.bytes / self._median(words.max, repeats)
        del source, words
        for dtype in ("bfloat16", "float16"):
            a = torch.randn(self.size, self.size, device=self.device).to(getattr(torch, dtype))
            b = torch.randn(self.size, self.size, device=self.device).to(getattr(torch, dtype))
            seconds = self._median(partial(torch.matmul, a, b.T), repeats)
            found[f"{dtype}_matrix_teraflops"] = 2e-12 * self.size**3 / seconds
            del a, b
        if self.device == "cuda":
            torch.cuda.empty_cache()  # others measure while this process waits
        return found

    def clocks(self) -> dict[str, str]:
        """What nvidia-smi says now; nothing where there is none."""
        program = shutil.which("nvidia-smi")
        if program is None:
            return {}
        command = [program, f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits", "--id=0"]
        try:
            output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            return {}
        values = [value.strip() for value in output.split("\n", 1)[0].split(",")]
        return dict(zip(_QUERY, values, strict=False))

    def _properties(self) -> dict[str, Any]:
        if self.device != "cuda":
            return {}
        found = torch.cuda.get_device_properties(0)
        return {
            "gpu": found.name,
            "compute_capability": f"{found.major}.{found.minor}",
            "multiprocessors": found.multi_processor_count,
            "memory_gb": found.total_memory * 1e-9,
            "l2_mb": getattr(found, "L2_cache_size", 0) * 1e-6,
        }

    def _median(self, work: Callable[[], Any], repeats: int) -> float:
        """Seconds of one run, by the device's own clock."""
        for _ in range(3):
            work()
        if self.device != "cuda":
            seconds = []
            for _ in range(repeats):
                start = time.perf_counter()
                work()
                seconds.append(time.perf_counter() - start)
            return statistics.median(seconds)
        event: Any = torch.cuda.Event  # has no types
        events = [[event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for first, last in events:
            first.record()
            work()
            last.record()
        torch.cuda.synchronize()
        return float(statistics.median(1e-3 * first.elapsed_time(last) for first, last in events))


if __name__ == "__main__":
    serve(Limits)
