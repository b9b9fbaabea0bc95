"""Execution providers: a row each, and the threads that a process may use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort
import pytest

from helium_onnx.errors import ProviderError
from helium_onnx.runtimes.providers import PROVIDERS, default_threads, execution_provider

QUOTA = "/sys/fs/cgroup/cpu.max"
Machine = Callable[..., None]


def siblings(cpu: int) -> str:
    return f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Make a machine: the CPUs that the process may use, and all the files that there are."""

    def make(cpus: set[int], files: dict[str, str]) -> None:
        def read_text(path: Path, *_: object, **__: object) -> str:
            if str(path) not in files:
                raise FileNotFoundError(path)
            return files[str(path)]

        monkeypatch.setattr(os, "sched_getaffinity", lambda _: cpus)
        monkeypatch.setattr(Path, "read_text", read_text)

    return make


#: Four cores of two hardware threads each, numbered as Intel does: 0 and 4 are one core.
PAIRED = {siblings(cpu): f"{cpu % 4},{cpu % 4 + 4}\n" for cpu in range(8)}


@pytest.mark.parametrize(
    ("cpus", "files", "threads"),
    [
        (set(range(8)), PAIRED, 4),
        ({0, 1, 4, 5}, PAIRED, 2),
        ({0, 4}, PAIRED, 1),
        ({3}, PAIRED, 1),
        ({1, 6}, PAIRED, 2),
        (set(range(6)), {}, 6),  # no topology: each CPU counts
        (set(range(8)), {**PAIRED, QUOTA: "max 100000\n"}, 4),
        (set(range(8)), {**PAIRED, QUOTA: "200000 100000\n"}, 2),
        (set(range(8)), {**PAIRED, QUOTA: "250000 100000\n"}, 2),
        (set(range(8)), {**PAIRED, QUOTA: "50000 100000\n"}, 1),  # half a CPU still is one thread
        (set(range(8)), {**PAIRED, QUOTA: "800000 100000\n"}, 4),  # a quota beyond the cores adds none
        ({0, 4}, {**PAIRED, QUOTA: "400000 100000\n"}, 1),
        (set(range(8)), {**PAIRED, QUOTA: ""}, 4),
        (set(range(8)), {**PAIRED, QUOTA: "many 100000\n"}, 4),
    ],
)
def test_threads_are_the_cores_that_affinity_and_quota_leave(
    machine: Machine, cpus: set[int], files: dict[str, str], threads: int
) -> None:
    machine(cpus, files)
    assert default_threads() == threads


def test_a_system_without_affinity_counts_its_cpus(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(set(), {})
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert default_threads() == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert default_threads() == 1


def test_this_machines_threads_are_at_most_its_cpus() -> None:
    assert 1 <= default_threads() <= len(os.sched_getaffinity(0))


def test_every_row_is_found_by_its_name_and_known_to_onnxruntime() -> None:
    for name, row in PROVIDERS.items():
        assert row.name == name
        assert execution_provider(name) is row
        assert row.onnxruntime_name in ort.get_all_providers()


def test_an_unknown_provider_is_told_which_there_are() -> None:
    with pytest.raises(ProviderError) as caught:
        execution_provider("CPU")
    assert "'CPU'" in caught.value.what
    assert "cpu" in str(caught.value.expected)
