"""The Ray cluster of a job: reached or started, and divided among workers."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from helium_onnx.batching.work import Work
from helium_onnx.errors import BatchError, UsageError

_MOST_THREADS = 4
_EXPECTED = "auto, or the address of a cluster's head, as 10.0.0.5:6379"


@dataclass(frozen=True)
class Pool:
    """How many workers, and what each takes of its machine."""

    workers: int
    cpus: int
    gpus: int
    threads: int | None


def check_address(address: str) -> None:
    """Ray itself tries for minutes to reach an address at which nobody answers."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise UsageError("ray has a value that it cannot have", found=repr(address), expected=_EXPECTED)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> BatchError:
    text = str(error).strip()
    return BatchError(
        f"there is no Ray cluster at {address}",
        found=text.splitlines()[0][:300] if text else type(error).__name__,
        expected=_EXPECTED,
        remedy="check the address, which ray start --head shows, and RAY_AUTH_MODE=token if it wants a token",
    )


def connect(address: str, stack: ExitStack) -> Any:
    import ray

    if ray.is_initialized():  # by whoever called us, who goes on with it
        return ray
    # Nothing about a job is sent to anybody, unless its user says so.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    stack.callback(ray.shutdown)  # of a cluster that we started, it ends every process
    try:
        with _native_stderr_closed():  # it would say how it logs, into the progress that is shown there
            ray.init(address=None if address == "auto" else address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError, AssertionError) as error:
        raise _no_cluster(address, error) from error
    return ray


@contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """Let nothing that Ray's C++ writes to stderr come through, for the time of the block."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def divide(ray: Any, workers: int | None, work: Work) -> Pool:
    """Divide the cluster: as many workers as have room, with the threads that they were given."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if _on_gpu(work):
        gpus = int(sum(node.get("GPU", 0) for node in nodes))
        count = workers or gpus
        if not 0 < count <= gpus:
            raise _too_few(f"{gpus} GPUs in the cluster", f"one for each of {count or 1} workers")
        return Pool(count, 1, 1, None)
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    threads = work.load_options.get("threads")
    if threads is None and workers is not None:
        # The most threads with which so many workers have room.
        threads = next((n for n in range(max(cpus), 0, -1) if sum(cpu // n for cpu in cpus) >= workers), 1)
    elif threads is None:
        threads = max(1, min(_MOST_THREADS, max(cpus)))
    room = sum(cpu // threads for cpu in cpus)
    count = room if workers is None else workers
    if not 0 < count <= room:
        raise _too_few(f"{sum(cpus)} CPUs in the cluster", f"{threads} for each of {count or 1} workers")
    return Pool(count, threads, 0, threads)


def _on_gpu(work: Work) -> bool:
    from helium_onnx.bundle import Bundle
    from helium_onnx.runtimes.providers import AUTO, CUDA, bundle_provider

    return bundle_provider(Bundle.open(work.path), work.load_options.get("provider", AUTO)) is CUDA


def _too_few(found: str, expected: str) -> BatchError:
    return BatchError(
        "the Ray cluster has too few resources",
        found=found,
        expected=expected,
        remedy="ask for fewer workers or threads",
    )
