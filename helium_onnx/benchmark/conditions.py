"""What a measurement depends on beside the bundle: the processor, its caches, memory, versions, and who else works."""

from __future__ import annotations

import contextlib
import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from helium_onnx.installed import version

#: Instruction sets that decide which matrix kernels run, in Linux's names: x86-64, then ARM.
_INSTRUCTION_SETS = (
    "avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip


@dataclass(frozen=True)
class Conditions:
    """``cores`` are physical ones that the process may use; ``load_average`` is before the measurement, over 1, 5 and
    15 minutes; ``cache_bytes`` is the last level of the processor's caches, or None where the system does not say."""

    date: str
    cpu: str
    instruction_sets: tuple[str, ...]
    cores: int
    threads: int
    cache_bytes: int | None
    memory_bytes: int | None
    load_average: tuple[float, ...]
    system: str
    versions: dict[str, str]


def conditions(threads: int) -> Conditions:
    """Here and now."""
    from helium_onnx.runtimes.providers import default_threads

    cpu, flags = _processor()
    packages = ("helium-onnx", "onnxruntime", "numpy")
    return Conditions(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        cpu=cpu,
        instruction_sets=tuple(name for name in _INSTRUCTION_SETS if name in flags),
        cores=default_threads(),
        threads=threads,
        cache_bytes=cache_bytes(),
        memory_bytes=_memory("MemTotal"),
        load_average=tuple(round(load, 2) for load in os.getloadavg()) if hasattr(os, "getloadavg") else (),
        system=f"{platform.system()} {platform.machine()}",
        versions={"python": platform.python_version(), **{name: version(name) or "unknown" for name in packages}},
    )


def cache_bytes() -> int | None:
    """The last level of the caches of all processors together."""
    found: dict[tuple[int, str], int] = {}
    for folder in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if (folder / "type").read_text().strip() != "Instruction":
                level = int((folder / "level").read_text())
                shared = (folder / "shared_cpu_list").read_text().strip()
                found[level, shared] = _size((folder / "size").read_text().strip())
    last = max((level for level, _ in found), default=0)
    return sum(size for (level, _), size in found.items() if level == last) or None


def available_memory() -> int | None:
    """Bytes that can be had without swapping, by Linux's estimate."""
    return _memory("MemAvailable")


def _memory(field: str) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None


def _processor() -> tuple[str, set[str]]:
    """Name and instruction sets."""
    name, flags = platform.processor() or platform.machine(), ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = value
    return name, set(flags.split())


def _size(text: str) -> int:
    """Of ``32768K``."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return int(text.rstrip("KMG")) * units.get(text[-1], 1)
