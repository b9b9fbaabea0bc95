"""The CUDA driver over NVIDIA's real bindings and a libcuda of ours, and the fake driver that other tests use."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from fake_cuda import FakeCudaDriver, libcuda

from helium_onnx.runtimes.cuda_driver import CudaDriver


@pytest.fixture(scope="module")
def with_libcuda(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Run code in a process of its own, in which a libcuda of ours is the driver; what it printed."""
    folder = libcuda(tmp_path_factory.mktemp("libcuda"))

    def run(code: str, **settings: object) -> str:
        settings = {f"FAKE_CUDA_{name}": str(value) for name, value in settings.items()}
        done = subprocess.run(
            [sys.executable, "-c", f"from helium_onnx.runtimes.cuda_driver import CudaDriver, probe\n{code}"],
            capture_output=True, text=True, timeout=120,
            env={**os.environ, "LD_LIBRARY_PATH": str(folder), **settings},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_every_method(with_libcuda: Callable[..., str]) -> None:
    code = """
import threading
import numpy as np
driver = CudaDriver()
info = driver.info()
assert (info.index, info.name, info.compute_capability) == (0, "NVIDIA Fake", (9, 0))
assert (info.total_bytes, info.free_bytes, info.multiprocessors) == (80 << 30, 79 << 30, 132)
assert driver.memory() == (79 << 30, 80 << 30)

stream, event = driver.new_stream(), driver.new_event()
assert isinstance(stream, int) and isinstance(event, int)
device = np.zeros(12, np.int64)  # what the library calls device memory is the host's
address = device.ctypes.data
pinned = driver.pinned((3, 4), np.int64)
assert not pinned.any() and pinned.flags.writeable and pinned.shape == (3, 4)
pinned[:] = np.arange(12).reshape(3, 4)
driver.to_device(address, pinned, stream)
assert driver.done(event)  # before its first record
driver.record(event, stream)
assert [driver.done(event) for _ in range(3)] == [False, False, True]
driver.record(event, stream)
driver.wait(event)
driver.synchronize(stream)
assert device.tolist() == list(range(12))
back = np.zeros((2, 6), np.int64)
driver.from_device(back, address)
assert back.ravel().tolist() == list(range(12))
driver.to_device(address, -back)
assert device.tolist() == [-i for i in range(12)]
assert driver.pinned((0, 3), np.float16).shape == (0, 3)
driver.to_device(address, np.zeros(0, np.float32))

rows = np.full((4, 16), 7, np.uint8)
wide = np.arange(40, dtype=np.uint8).reshape(4, 10)
driver.rows_to_device(rows.ctypes.data, 16, wide[:, :6])  # from rows that lie apart on the host too
assert (rows[:, :6] == wide[:, :6]).all() and (rows[:, 6:] == 7).all()
target = np.zeros((4, 9), np.uint8)
driver.rows_from_device(target[:, 1:7], rows.ctypes.data, 16)
assert (target[:, 1:7] == wide[:, :6]).all() and not target[:, 0].any() and not target[:, 7:].any()
driver.rows_to_device(rows.ctypes.data, 16, wide[:0])

seen = []
thread = threading.Thread(target=lambda: seen.append(driver.memory()))  # which has no context of its own yet
thread.start()
thread.join()
assert seen == [(79 << 30, 80 << 30)]
driver.destroy_event(event)
driver.destroy_stream(stream)
driver.close()
driver.close()
print("all done")
"""
    assert with_libcuda(code) == "all done\n"


def test_a_report_of_a_machine_with_a_device(with_libcuda: Callable[..., str]) -> None:
    code = "r = probe(); print(r.driver_version, r.problem, r.remedy, len(r.devices), r.devices[1].free_bytes >> 20)"
    assert with_libcuda(code, DEVICES=2, FREE=512) == "(13, 0) None None 2 512\n"


def test_a_report_leaves_no_context_behind(with_libcuda: Callable[..., str]) -> None:
    """Nor does a closed driver: what it retained it releases, on the thread of another's context too."""
    code = """
from cuda.bindings import driver as cuda
probe()
print(cuda.cuCtxGetCurrent()[1] and int(cuda.cuCtxGetCurrent()[1]))
print([int(cuda.cuDevicePrimaryCtxRelease(0)[0]) for _ in range(2)])
driver = CudaDriver()
driver.new_stream(), driver.new_event(), driver.pinned((3,), "uint8")
driver.close()
print(int(cuda.cuDevicePrimaryCtxRelease(0)[0]))
"""
    assert with_libcuda(code).splitlines() == ["0", "[201, 201]", "201"]


@pytest.mark.parametrize(
    ("settings", "problem", "remedy"),
    [
        ({"INIT": 100}, "the NVIDIA driver sees no GPU (CUDA_ERROR_NO_DEVICE 100 from cuInit)", "--gpus all"),
        ({"INIT": 34}, "the toolkit's stub", "LD_LIBRARY_PATH"),
        ({"INIT": 802}, "not ready yet", "nvidia-fabricmanager"),
        ({"INIT": 803}, "different versions", "restart the machine"),
        ({"INIT": 804}, "cuda-compat", "R580"),
        ({"INIT": 999}, "does not start", "nvidia_uvm"),
        ({"INIT": 77}, "the NVIDIA driver fails (77 is not a valid CUresult)", "nvidia-smi"),
        ({"INIT": 700}, "(CUDA_ERROR_ILLEGAL_ADDRESS 700 from cuInit)", "nvidia-smi"),
        ({"VERSION": 12040}, "the NVIDIA driver is too old (for CUDA 12.4)", "R580 (580.65.06)"),
        ({"DEVICES": 0}, "the NVIDIA driver sees no GPU", "nvidia-smi"),
        ({"CAPABILITY": 61}, "too old for CUDA 13 (compute capability 6.1, needed is 7.5)", "--recipe cpu-int4"),
        ({"CONTEXT": 46}, "another process has it for itself alone", "nvidia-smi -c DEFAULT"),
        ({"CONTEXT": 2}, "too little free memory", "nvidia-smi lists the processes"),
    ],
)
def test_each_obstacle_is_named_by_both(
    settings: dict[str, int], problem: str, remedy: str, with_libcuda: Callable[..., str]
) -> None:
    code = """
from helium_onnx.errors import ProviderError
report = probe()
print(report.problem)
print(report.remedy)
try:
    CudaDriver()
except ProviderError as error:
    print(error.what if error.found is None else f"{error.what} ({error.found})")
    print(error.remedy)
"""
    reported = with_libcuda(code, **settings).splitlines()
    assert problem in reported[0]
    assert remedy in reported[1]
    assert reported[2:] == reported[:2]


def test_a_device_that_is_not_there(with_libcuda: Callable[..., str]) -> None:
    code = "try: CudaDriver(1)\nexcept Exception as error: print(type(error).__name__, error)"
    shown = with_libcuda(code)
    assert shown.startswith("ProviderError there is no GPU 1\n  found:    1 GPU\n  expected: a number from 0 to 0")


def test_a_copy_that_fails(with_libcuda: Callable[..., str]) -> None:
    code = """
import numpy as np
from helium_onnx.errors import ProviderError
driver, array = CudaDriver(), np.zeros(4)
for call in (
    lambda: driver.to_device(array.ctypes.data, array),
    lambda: driver.rows_to_device(array.ctypes.data, 8, np.zeros((2, 8), np.uint8)),
):
    try:
        call()
    except ProviderError as error:
        print(error.found)
driver.close()
"""
    name = "CUDA_ERROR_LAUNCH_FAILED 719 from"
    assert with_libcuda(code, COPY=719).splitlines() == [f"{name} cuMemcpyHtoDAsync", f"{name} cuMemcpy2DAsync"]


# The fake that other tests use


def test_the_fake_has_the_drivers_methods() -> None:
    def methods(kind: type) -> dict[str, inspect.Signature]:
        return {
            name: inspect.signature(value)
            for name, value in vars(kind).items()
            if inspect.isfunction(value) and not name.startswith("_")
        }

    ours, fake = methods(CudaDriver), methods(FakeCudaDriver)
    assert set(fake) - set(ours) == {"allocate", "enqueue", "waiting"}
    assert {name: str(signature) for name, signature in fake.items() if name in ours} == {
        name: str(signature) for name, signature in ours.items()
    }


def test_the_fake_copies() -> None:
    driver = FakeCudaDriver(free_bytes=5, total_bytes=9)
    assert driver.memory() == (5, 9)
    driver.free_bytes = 4
    assert driver.info().free_bytes == 4
    stream, address = driver.new_stream(), driver.allocate(32)
    pinned = driver.pinned((2, 4), np.int32)
    pinned[:] = 7
    driver.to_device(address, pinned, stream)
    back = np.zeros(8, np.int32)
    driver.from_device(back, address)
    assert back.tolist() == [7] * 8
    rows = np.arange(12, dtype=np.uint8).reshape(3, 4)
    driver.rows_to_device(address, 8, rows[:, :3])
    result = np.zeros((3, 3), np.uint8)
    driver.rows_from_device(result, address, 8)
    assert (result == rows[:, :3]).all()
    assert driver.calls[:2] == ["memory", "memory"]


def test_the_fake_refuses_what_a_device_would_not_bear() -> None:
    driver = FakeCudaDriver()
    stream, address = driver.new_stream(), driver.allocate(32)
    with pytest.raises(AssertionError, match="pinned"):
        driver.to_device(address, np.zeros(4), stream)
    with pytest.raises(AssertionError, match="no such stream"):
        driver.synchronize(stream + 1)
    pinned = driver.pinned((4,), np.uint8)
    driver.close()
    assert pinned.any()  # overwritten: it is no longer ours
    driver.close()
    with pytest.raises(AssertionError, match="after close"):
        driver.memory()


def test_the_lazy_fake_does_nothing_before_it_is_waited_for() -> None:
    driver = FakeCudaDriver(lazy=True)
    stream, address = driver.new_stream(), driver.allocate(8)
    source, target = driver.pinned((1,), np.int64), driver.pinned((1,), np.int64)
    event = driver.new_event()
    assert driver.done(event)

    source[:] = 1
    driver.to_device(address, source, stream)
    driver.from_device(target, address, stream)
    driver.record(event, stream)
    driver.enqueue(stream, lambda: target.__setitem__(0, 99))
    assert (target[0], driver.done(event), driver.waiting(stream)) == (0, False, 4)
    source[:] = 2  # too early: the copy has not read it
    driver.wait(event)
    assert (target[0], driver.done(event), driver.waiting(stream)) == (2, True, 1)
    driver.synchronize(stream)
    assert target[0] == 99


def test_the_lazy_fakes_event_counts_from_its_last_record() -> None:
    driver = FakeCudaDriver(lazy=True)
    stream, event, done = driver.new_stream(), driver.new_event(), []
    driver.record(event, stream)
    driver.enqueue(stream, lambda: done.append(1))
    driver.record(event, stream)
    driver.wait(event)
    assert done == [1]
    driver.enqueue(stream, lambda: done.append(2))
    driver.wait(event)  # it is behind nothing new
    assert done == [1]


def test_a_copy_without_a_stream_overtakes_the_lazy_fakes_streams() -> None:
    driver = FakeCudaDriver(lazy=True)
    stream, address = driver.new_stream(), driver.allocate(8)
    pinned, back = driver.pinned((1,), np.int64), np.zeros(1, np.int64)
    pinned[:] = 5
    driver.to_device(address, pinned, stream)
    driver.from_device(back, address)
    assert back[0] != 5
    driver.synchronize(stream)
    driver.from_device(back, address)
    assert back[0] == 5
