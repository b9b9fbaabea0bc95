"""The machine's limits: both ways of measuring give every figure they can; how large the figures are is not tested."""

from __future__ import annotations

import ctypes
import json

import pytest

from helium_onnx import kernels
from helium_onnx.benchmark import machine
from helium_onnx.benchmark.conditions import available_memory, cache_bytes, conditions
from helium_onnx.benchmark.machine import Limits
from helium_onnx.benchmark.process import run_apart
from helium_onnx.errors import HeliumOnnxError

SMALL = 1 << 20


def test_with_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "library", lambda: None)
    limits = machine.measure_here(2, 3, SMALL)
    assert (limits.by, limits.threads, limits.buffer_bytes) == ("numpy", 2, SMALL)
    assert len(limits.read_gigabytes_per_second) == len(limits.fp32_gigaflops) == 3
    assert min(limits.read_gigabytes_per_second + limits.fp32_gigaflops) > 0
    assert limits.int8_gigaops == ()


@pytest.mark.usefixtures("native_kernels")
def test_with_the_native_library() -> None:
    limits = machine.measure_here(2, 2, SMALL)
    assert limits.by == "helium_onnx.kernels"
    assert len(limits.read_gigabytes_per_second) == len(limits.int8_gigaops) == len(limits.fp32_gigaflops) == 2
    assert min(limits.read_gigabytes_per_second + limits.int8_gigaops + limits.fp32_gigaflops) > 0


def test_what_the_native_library_cannot_measure_is_left_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Function:
        def __init__(self, name: str, value: float) -> None:
            self.name, self.value = name, value

        def __call__(self, *arguments: int) -> float:
            asked.append((self.name, arguments, self.argtypes, self.restype))  # type: ignore[attr-defined]
            return self.value

    class Library:
        helium_read_gigabytes_per_second = Function("read", 12.5)
        helium_int8_gigaops = Function("int8", 0.0)
        helium_fp32_gigaflops = Function("fp32", -1.0)

    monkeypatch.setattr(kernels, "library", lambda: Library)
    limits = machine.measure_here(3, 1, SMALL)
    assert (limits.read_gigabytes_per_second, limits.int8_gigaops, limits.fp32_gigaflops) == ((12.5,), (), ())
    assert asked[0] == ("read", (3, SMALL), [ctypes.c_int, ctypes.c_int64], ctypes.c_double)
    assert [call[1] for call in asked[1:]] == [(3,), (3,)]


def test_in_a_process_of_its_own() -> None:
    limits = machine.measure(1, 1)
    assert limits.threads == 1
    assert limits.buffer_bytes >= 4 * (cache_bytes() or 0) or available_memory() is not None
    assert len(limits.read_gigabytes_per_second) == 1
    assert isinstance(limits.read_gigabytes_per_second, tuple)


def test_two_measurements_are_one() -> None:
    one, two = Limits("numpy", 2, 10, (1.0, 2.0), (), (5.0,)), Limits("numpy", 2, 10, (3.0,), (), (4.0,))
    assert one.and_also(two) == Limits("numpy", 2, 10, (1.0, 2.0, 3.0), (), (5.0, 4.0))


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(HeliumOnnxError, match=r"failed \(machine, exit code 1\)") as caught:
        run_apart("machine", "many", "1")
    assert "invalid literal" in str(caught.value.found)


def test_conditions() -> None:
    found = conditions(3)
    assert found.cpu
    assert found.threads == 3
    assert found.cores >= 1
    assert set(found.versions) == {"python", "helium-onnx", "onnxruntime", "numpy"}
    assert all(version != "unknown" for version in found.versions.values())
    assert found.cache_bytes is None or found.cache_bytes > 100_000
    assert found.memory_bytes is None or found.memory_bytes > 100_000_000
    json.dumps(vars(found))
