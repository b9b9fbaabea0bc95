"""Build the library of our kernels: ``python -m helium_onnx.kernels.build``. Package builds call ``build`` too.

Needs nothing but a C++17 compiler (``$CXX``, else c++, g++ or clang++); no headers of ONNX Runtime.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).with_name("src")
LIBRARY = Path(__file__).with_name("libhelium_kernels.so")
#: The operators for CUDA; their kernels are compiled on the machine that has the GPU (cuda.py).
DEVICE_SOURCES = Path(__file__).with_name("device")
DEVICE_LIBRARY = Path(__file__).with_name("libhelium_device.so")

# No contraction of a * b + c: where one rounding is wanted the source says so, and every build gives the same bits.
_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"),
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),  # what GCC 12 says of its own intrinsics
)
#: Each file with the instruction set that it alone may use; the others run on any processor of the architecture.
_X86 = {
    "avx512.cpp": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma", "-mf16c"),
    "avx2.cpp": ("-mavx2", "-mfma", "-mf16c"),
}


def compiler() -> str | None:
    """The C++ compiler, or None."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), None)


def build(target: Path = LIBRARY, sources: Path | None = None) -> None:
    """Compile ``sources/*.cpp`` into ``target``, in place of an older one only when all went well.

    ``sources`` defaults to the folder of the CPU kernels.

    Raises:
        FileNotFoundError: there is no C++ compiler.
        subprocess.CalledProcessError: it failed; its messages were printed.
    """
    cxx = compiler()
    if cxx is None:
        raise FileNotFoundError("no C++ compiler ($CXX, c++, g++, clang++)")
    special = _X86 if platform.machine().lower() in ("x86_64", "amd64") else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        running = []
        # The linker takes the first of an inline function's copies, and that one must run on any processor.
        files = sorted((sources or SOURCES).glob("*.cpp"), key=lambda source: (source.name in special, source.name))
        for source in files:
            command = [cxx, *_FLAGS, *special.get(source.name, ()), "-c", str(source), "-o", str(folder / source.stem)]
            running.append((command, subprocess.Popen(command)))
        for code, command in [(process.wait(), command) for command, process in running]:  # all, before the folder goes
            if code != 0:
                raise subprocess.CalledProcessError(code, command)
        objects = [str(folder / source.stem) for source in files]
        made = folder / target.name
        subprocess.run([cxx, "-shared", "-pthread", "-o", str(made), *objects, "-ldl"], check=True)
        partial = target.with_suffix(f".{os.getpid()}")
        shutil.copyfile(made, partial)
        partial.replace(target)  # a process that has the old one mapped keeps it


if __name__ == "__main__":
    try:
        build()
        build(DEVICE_LIBRARY, DEVICE_SOURCES)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        sys.exit(f"helium_onnx.kernels: not built: {error}")
    print(LIBRARY, DEVICE_LIBRARY, sep="\n")
