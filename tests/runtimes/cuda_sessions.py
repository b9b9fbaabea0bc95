"""Sessions over a device of the host (host_device.py) for tests: texts, prefilled pasts, steps chosen on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from host_device import HostDevice
from numpy.typing import NDArray

from helium_onnx.runtimes.cuda_session import CudaSession
from helium_onnx.runtimes.device_cache import DevicePast

RANDOM = np.random.default_rng(0)
TEXTS = [RANDOM.integers(4, 320, (1, length)) for length in (20, 3, 41, 1, 7, 12)]
Ids = NDArray[np.int64]
Opening = Callable[..., tuple[CudaSession, HostDevice]]


def prefilled(session: CudaSession, texts: list[Ids]) -> tuple[DevicePast, Ids]:
    """A past with a text in each row, and the greedy next ids [rows, 1]."""
    past = session.new_past(len(texts))
    assert isinstance(past, DevicePast)
    first = [session.run("prefill", text, past.row(row))[0].argmax(axis=-1) for row, text in enumerate(texts)]
    assert past.lengths.tolist() == [text.shape[1] for text in texts]
    return past, np.array(first)


def step_by_step(session: CudaSession, past: DevicePast, ids: Ids, steps: int) -> list[list[int]]:
    """Greedy ids, each chosen on the host."""
    found = []
    for _ in range(steps):
        ids = session.run("decode", ids, past)[:, 0].argmax(axis=-1)[:, None]
        found.append(ids[:, 0].tolist())
    return found


def row_alone(session: CudaSession, slots: list[NDArray[Any]]) -> DevicePast:
    past = session.new_past(1)
    assert isinstance(past, DevicePast)
    past.write_slots(slots)
    return past
