"""Whether ONNX Runtime's CUDA provider can load here: the right package's files, and NVIDIA's libraries by name.

``pip install 'helium-onnx[cuda]'`` puts onnxruntime and onnxruntime-gpu into one folder, since the first is what
everybody needs; pip installs the second first (of two packages on one level, the later name), so the CPU's files come
to lie over those of the GPU. Nothing says so, and CUDA is simply not there: ``onnxruntime_problem`` says it.
"""

from __future__ import annotations

import ctypes
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from helium_onnx.errors import ProviderError
from helium_onnx.installed import version
from helium_onnx.runtimes.cuda_probe import INSTALL

#: The major version that onnxruntime-gpu must be built for: the libraries below and the driver go with it.
CUDA_MAJOR = "13"


@dataclass(frozen=True)
class Library:
    """A shared library of NVIDIA's, and the package that has it, as pip takes it.

    ``needed``: the provider does not load without it. ``use`` is what it is for.
    """

    name: str
    package: str
    needed: bool
    use: str


#: In the order of loading: what a library needs stands before it. The needed ones are what
#: libonnxruntime_providers_cuda.so 1.31.1 is linked with; it opens the others itself where an operator asks for them.
LIBRARIES = (
    Library("libcublasLt.so.13", "nvidia-cublas~=13.0", True, "matrix products"),
    Library("libcublas.so.13", "nvidia-cublas~=13.0", True, "matrix products"),
    Library("libnvrtc.so.13", "nvidia-cuda-nvrtc~=13.0", False, "compiling our own kernels for this GPU"),
    Library("libcurand.so.10", "nvidia-curand~=10.0", True, "ONNX Runtime's CUDA provider"),
    Library("libcufft.so.12", "nvidia-cufft~=12.0", False, "operators that Helium does not have"),
    Library("libcudart.so.13", "nvidia-cuda-runtime~=13.0", True, "ONNX Runtime's CUDA provider"),
    Library("libcudnn.so.9", "nvidia-cudnn-cu13~=9.0", False, "some of ONNX Runtime's operators"),
)


def installed() -> str | None:
    """The version of onnxruntime-gpu that pip installed, whatever lies over it now; None where it did not."""
    return version("onnxruntime-gpu")


def onnxruntime_problem() -> tuple[str, str] | None:
    """Why the installed ONNX Runtime has no CUDA provider, and the remedy; None where it has one. Never raises.

    It imports onnxruntime, and asks for no device.
    """
    found = installed()
    gpu = "'onnxruntime-gpu~=1.31.0'" if found is None else f"onnxruntime-gpu=={found}"
    reinstall = f"pip install --force-reinstall --no-deps {gpu}"
    try:
        import onnxruntime as ort

        providers = ort.get_available_providers()
        cuda = str(getattr(ort, "cuda_version", "") or "")
    except Exception as error:  # files of two versions, or half of one
        broken = f"onnxruntime cannot be imported ({type(error).__name__}: {error})".splitlines()[0]
        return broken, reinstall if found else "pip install --force-reinstall --no-deps 'onnxruntime~=1.31.0'"
    if "CUDAExecutionProvider" in providers:
        if cuda and cuda.split(".")[0] != CUDA_MAJOR:
            return (
                f"this onnxruntime-gpu is built for CUDA {cuda}, not {CUDA_MAJOR}",
                "pip install --force-reinstall --no-deps 'onnxruntime-gpu~=1.31.0'",
            )
        return None
    if found is None:
        return "the package onnxruntime-gpu is not installed", INSTALL
    return "onnxruntime's CPU files lie over those of onnxruntime-gpu", reinstall


def load_libraries() -> tuple[Library, ...]:
    """Load NVIDIA's libraries into this process, so that the provider finds them; return those that cannot be had.

    They come from the nvidia packages beside onnxruntime, else from where the system looks (LD_LIBRARY_PATH). This is
    ``onnxruntime.preload_dlls``, which prints what it misses.
    """
    folders = _package_folders()
    return tuple(library for library in LIBRARIES if not _load(library.name, folders))


def check_libraries() -> None:
    """Load them; raise ProviderError where ONNX Runtime's CUDA provider, or one of its libraries, is not there."""
    problem = onnxruntime_problem()
    if problem is not None:
        raise ProviderError(f"ONNX Runtime cannot use CUDA: {problem[0]}", remedy=problem[1])
    missing = [library for library in load_libraries() if library.needed]
    if missing:
        raise ProviderError(
            "libraries of CUDA are missing",
            found=f"no {', '.join(library.name for library in missing)}",
            remedy=install_remedy(missing),
        )


def install_remedy(missing: list[Library]) -> str:
    """The command that brings the missing libraries' packages."""
    packages = " ".join(f"'{package}'" for package in sorted({library.package for library in missing}))
    return f"pip install --force-reinstall --no-deps {packages}, or put their folder into LD_LIBRARY_PATH"


def _package_folders() -> list[Path]:
    """The lib folders of the nvidia packages; pip may have put them into several places of ``sys.path``."""
    try:
        spec = importlib.util.find_spec("nvidia")
    except (ImportError, ValueError):
        return []
    roots = [] if spec is None else list(spec.submodule_search_locations or [])
    return [Path(root) / part / "lib" for root in roots for part in (f"cu{CUDA_MAJOR}", "cudnn")]


def _load(name: str, folders: list[Path]) -> bool:
    for place in (*(str(folder / name) for folder in folders if (folder / name).is_file()), name):
        try:
            ctypes.CDLL(place)
        except OSError:
            continue
        return True
    return False
