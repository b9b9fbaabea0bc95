"""How long a process takes from its start to its first token, and what memory it holds then.

Each load is a process of its own. ``cold``: the bundle's files were dropped from the page cache, and no prepacked
weights are used. ``warm``: the files are in the page cache, and prepacked weights are used as ``load`` would.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helium_onnx.benchmark.process import run_apart
from helium_onnx.bundle import Bundle
from helium_onnx.manifest import MANIFEST_FILE


@dataclass(frozen=True)
class Load:
    """Medians over ``runs`` processes. Seconds are counted from the start of the process.

    ``loaded_seconds``: ``helium_onnx.load`` has returned, and the first prompt can start. ``first_token_seconds``: the
    first token after a prompt of ``prompt_tokens`` is there. ``ready_seconds``: a decode step is done too, for which
    both graphs must be loaded. Memory is what the process holds then: ``private_bytes`` its own (anonymous),
    ``shared_bytes`` pages of files, which other processes can use too; None where the system does not say.
    ``cached_share`` is the part of the bundle that was in the page cache before.
    """

    runs: int
    prompt_tokens: int
    import_seconds: float
    loaded_seconds: float
    first_token_seconds: float
    ready_seconds: float
    private_bytes: int | None
    shared_bytes: int | None
    cached_share: float | None


def measure_cold(bundle: Bundle, options: dict[str, Any], *, prompt_tokens: int, runs: int) -> Load | None:
    """None where the system cannot drop a file's pages. Other processes must not have the files mapped."""
    if not hasattr(os, "posix_fadvise"):
        return None
    return _measure(bundle, {**options, "cache": False}, prompt_tokens, runs, cold=True)


def measure_warm(bundle: Bundle, options: dict[str, Any], *, prompt_tokens: int, runs: int) -> Load:
    """After one load that is not counted: it fills the page cache and, where ``load`` would, prepacks the weights."""
    _load(bundle, options, prompt_tokens)
    return _measure(bundle, options, prompt_tokens, runs, cold=False)


def _measure(bundle: Bundle, options: dict[str, Any], prompt_tokens: int, runs: int, *, cold: bool) -> Load:
    found: list[dict[str, Any]] = []
    for _ in range(runs):
        if cold:
            drop_from_page_cache(bundle)
        share = cached_share(bundle)
        found.append({**_load(bundle, options, prompt_tokens), "cached_share": share})

    def median(key: str) -> Any:
        values = [run[key] for run in found if run[key] is not None]
        return statistics.median(values) if values else None

    medians: dict[str, Any] = {key: median(key) for key in found[0]}
    for key in ("private_bytes", "shared_bytes"):  # whole numbers, also between two runs
        medians[key] = None if medians[key] is None else round(medians[key])
    return Load(runs=runs, prompt_tokens=prompt_tokens, **medians)


def _load(bundle: Bundle, options: dict[str, Any], prompt_tokens: int) -> dict[str, Any]:
    """Of one process: all of a Load but what the caller knows."""
    start = time.monotonic()  # the same clock in all processes
    result: dict[str, Any] = run_apart("loading", str(bundle.path), json.dumps(options), str(prompt_tokens), str(start))
    return result


def main(path: str, options: str, prompt_tokens: str, start: str) -> None:
    """In that process: load, run one prompt and one step, and print what that took as JSON."""
    import helium_onnx

    began = float(start)
    given = json.loads(options)
    import onnxruntime  # noqa: F401  its time is told apart from the load's

    imported = time.monotonic()
    with helium_onnx.load(path, **given) as model:
        loaded = time.monotonic()
        import numpy as np

        session = model.session
        past = session.new_past(1)
        ids = np.random.default_rng(0).integers(0, session.vocab_size, (1, int(prompt_tokens)))
        token = int(session.run("prefill", ids, past)[0, -1].argmax())
        first = time.monotonic()
        session.run("decode", np.array([[token]], np.int64), past)
        ready = time.monotonic()
        private, shared = process_memory()
    seconds = {"import": imported, "loaded": loaded, "first_token": first, "ready": ready}
    result = {f"{name}_seconds": moment - began for name, moment in seconds.items()}
    json.dump({**result, "private_bytes": private, "shared_bytes": shared}, sys.stdout)


def process_memory() -> tuple[int | None, int | None]:
    """Private (anonymous) and shared (of files) bytes that this process holds in memory, where Linux tells them."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return None, None
    kilobytes = {name: int(text.split()[0]) for name, _, text in (line.partition(":") for line in lines)}
    private = 1024 * kilobytes["Anonymous"]
    return private, 1024 * kilobytes["Rss"] - private


def _files(bundle: Bundle) -> list[Path]:
    return [bundle.path / MANIFEST_FILE, *(bundle.path / file.path for file in bundle.manifest.files)]


def drop_from_page_cache(bundle: Bundle) -> None:
    """Ask the system to forget the pages of all files. It keeps those that a process has mapped, and those of tmpfs."""
    for path in _files(bundle):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):
                os.fsync(descriptor)  # what is not yet on the disk cannot be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def cached_share(bundle: Bundle) -> float | None:
    """Which part of the bundle's bytes is in the page cache, by mincore(2); None where there is no such call."""
    if not sys.platform.startswith("linux"):
        return None
    import numpy as np

    mincore = ctypes.CDLL(None, use_errno=True).mincore
    mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    resident = pages = 0
    for path in _files(bundle):
        if not path.stat().st_size:
            continue
        with (
            path.open("rb") as file,
            contextlib.closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as memory,
        ):
            view = np.frombuffer(memory, np.uint8)
            state = np.zeros(-(-len(view) // mmap.PAGESIZE), np.uint8)
            failed = mincore(view.ctypes.data, len(view), state.ctypes.data)
            del view  # a mapping with a view on it cannot be closed
            if failed:
                return None
        resident, pages = resident + int((state & 1).sum()), pages + len(state)
    return resident / pages
