"""Which package's files onnxruntime is, and which of NVIDIA's libraries are missing."""

from __future__ import annotations

import ctypes
import importlib.metadata
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from helium_onnx.errors import ProviderError
from helium_onnx.runtimes import cuda_libraries


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set what is installed: the version of onnxruntime-gpu, and what ``import onnxruntime`` gives."""

    def put(gpu: str | None, **onnxruntime: object) -> None:
        def version(name: str) -> str:
            assert name == "onnxruntime-gpu"
            if gpu is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return gpu

        monkeypatch.setattr(importlib.metadata, "version", version)
        monkeypatch.setitem(sys.modules, "onnxruntime", types.SimpleNamespace(**onnxruntime))

    return put


def providers(*names: str) -> Callable[[], list[str]]:
    return lambda: [*names, "CPUExecutionProvider"]


def test_the_gpus_package_is_there(packages: Callable[..., None]) -> None:
    packages("1.31.1", get_available_providers=providers("CUDAExecutionProvider"), cuda_version="13.0")
    assert cuda_libraries.onnxruntime_problem() is None


def test_the_cpus_files_lie_over_it(packages: Callable[..., None]) -> None:
    packages("1.31.1", get_available_providers=providers())
    assert cuda_libraries.onnxruntime_problem() == (
        "onnxruntime's CPU files lie over those of onnxruntime-gpu",
        "pip install --force-reinstall --no-deps onnxruntime-gpu==1.31.1",
    )
    with pytest.raises(ProviderError, match="CPU files lie over"):
        cuda_libraries.check_libraries()


def test_the_gpus_package_is_not_installed(packages: Callable[..., None]) -> None:
    packages(None, get_available_providers=providers())
    problem, remedy = cuda_libraries.onnxruntime_problem() or ("", "")
    assert problem == "the package onnxruntime-gpu is not installed"
    assert remedy.startswith("pip install 'helium-onnx[cuda]' && pip install --force-reinstall --no-deps")


def test_what_an_uninstalled_package_leaves(packages: Callable[..., None]) -> None:
    """``pip uninstall onnxruntime`` takes the files that both have: a folder is left, and it can be imported."""
    packages("1.31.1")
    problem, remedy = cuda_libraries.onnxruntime_problem() or ("", "")
    assert problem.startswith("onnxruntime cannot be imported")
    assert remedy == "pip install --force-reinstall --no-deps onnxruntime-gpu==1.31.1"


def test_a_package_for_another_cuda(packages: Callable[..., None]) -> None:
    packages("1.31.1", get_available_providers=providers("CUDAExecutionProvider"), cuda_version="12.8")
    assert "built for CUDA 12.8, not 13" in (cuda_libraries.onnxruntime_problem() or ("",))[0]


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[str]]:
    """Let only some libraries be found: in a package's folder, or by the system. What is loaded is listed."""

    def put(in_packages: set[str] = frozenset(), in_system: set[str] = frozenset()) -> list[str]:
        loaded: list[str] = []

        def load(name: str) -> object:
            if Path(name).name == name and name not in in_system:
                raise OSError(f"{name}: cannot open shared object file")
            loaded.append(name)
            return object()

        for name in in_packages:
            folder = tmp_path / "nvidia" / ("cudnn" if "cudnn" in name else "cu13") / "lib"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        monkeypatch.setattr(ctypes, "CDLL", load)
        monkeypatch.setattr(cuda_libraries.importlib.util, "find_spec", lambda _: types.SimpleNamespace(
            submodule_search_locations=[str(tmp_path / "elsewhere"), str(tmp_path / "nvidia")]
        ))  # fmt: skip
        return loaded

    return put


EVERY = {library.name for library in cuda_libraries.LIBRARIES}


def test_libraries_come_from_the_packages_first(loading: Callable[..., list[str]]) -> None:
    loaded = loading(in_packages=EVERY - {"libcufft.so.12"}, in_system=EVERY)
    assert cuda_libraries.load_libraries() == ()
    assert [Path(name).name for name in loaded] == [library.name for library in cuda_libraries.LIBRARIES]
    assert [name for name in loaded if "/" not in name] == ["libcufft.so.12"]


def test_missing_libraries_are_named(loading: Callable[..., list[str]], packages: Callable[..., None]) -> None:
    packages("1.31.1", get_available_providers=providers("CUDAExecutionProvider"), cuda_version="13.0")
    loading(in_packages=EVERY - {"libcublas.so.13", "libcublasLt.so.13", "libcudart.so.13", "libcudnn.so.9"})
    with pytest.raises(ProviderError) as caught:
        cuda_libraries.check_libraries()
    assert caught.value.found == "no libcublasLt.so.13, libcublas.so.13, libcudart.so.13"
    assert "'nvidia-cublas~=13.0' 'nvidia-cuda-runtime~=13.0'" in (caught.value.remedy or "")
    loading(in_packages=EVERY)
    cuda_libraries.check_libraries()


def test_a_provider_without_what_it_does_not_need(
    loading: Callable[..., list[str]], packages: Callable[..., None]
) -> None:
    packages("1.31.1", get_available_providers=providers("CUDAExecutionProvider"), cuda_version="13.0")
    loading(in_system={library.name for library in cuda_libraries.LIBRARIES if library.needed})
    cuda_libraries.check_libraries()
