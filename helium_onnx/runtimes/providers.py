"""Execution providers: a frozen row each, with a reason beside each odd value. Callers do not branch; rows differ."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from helium_onnx.errors import ProviderError


@dataclass(frozen=True)
class ExecutionProvider:
    """How ONNX Runtime is asked for one provider.

    ``config`` are session config entries. ``prefill_chunk`` is the most tokens that one prefill call takes.
    ``prepacks``: kernels reorder constant weights at load, so a cache of the reordered weights pays.
    """

    name: str
    onnxruntime_name: str
    options: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    prefill_chunk: int = 512
    prepacks: bool = False


CPU = ExecutionProvider(
    name="cpu",
    onnxruntime_name="CPUExecutionProvider",
    # Scores are [heads, chunk, total] float32: 512 bounds them at 168 MB for 20 heads over 4096.
    prefill_chunk=512,
    prepacks=True,
)

PROVIDERS: dict[str, ExecutionProvider] = {row.name: row for row in (CPU,)}


def execution_provider(name: str) -> ExecutionProvider:
    """The row of ``name``. Raises ProviderError for an unknown one."""
    if name not in PROVIDERS:
        raise ProviderError(f"there is no execution provider {name!r}", expected=f"one of {', '.join(PROVIDERS)}")
    return PROVIDERS[name]


def default_threads() -> int:
    """Threads for one session: the physical cores that this process may use.

    Matrix kernels gain nothing from a second hardware thread on a core, and lose time when a container's quota stops
    them half-way; so affinity, siblings and the cgroup's quota all count.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_siblings(cpu) for cpu in allowed}
    quota = _cgroup_quota()
    return max(1, min(len(cores), int(quota) if quota else len(cores)))


def _siblings(cpu: int) -> str:
    """The core of a logical CPU, as the list of its hardware threads."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _cgroup_quota() -> float | None:
    """CPUs that the cgroup (version 2) grants, or None."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None
