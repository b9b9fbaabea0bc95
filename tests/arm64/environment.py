"""Make an ARM64 machine of files: Debian's Python and the aarch64 wheels, which qemu-user runs on this processor.

    python tests/arm64/environment.py

It lies under ``out/arm64``, or where HELIUM_ARM64 says; nothing is installed into this machine. What is whole and up to
date is left alone. docs/arm64.md has the rest.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("HELIUM_ARM64", REPOSITORY / "out/arm64")).resolve()
QEMU = "qemu-aarch64-static"
COMPILER = "aarch64-linux-gnu-g++"
#: What tests need beyond the package's own dependencies, with all that they need; constraints.txt has the versions.
TEST_PACKAGES = ("pytest", "iniconfig", "pluggy", "hypothesis", "sortedcontainers", "onnx", "ml_dtypes", "onnx-ir")
#: pip knows which older wheels manylinux2014 includes, but takes a newer tag literally: all that there are, up to ours.
_PLATFORMS = (*(f"manylinux_2_{minor}_aarch64" for minor in range(28, 16, -1)), "manylinux2014_aarch64")


class UnavailableError(Exception):
    """This machine cannot have it; the text says what is missing, and the remedy."""


@dataclass(frozen=True)
class Cpu:
    """One processor that qemu imitates. ``features`` and ``part`` are what Linux says of it in /proc/cpuinfo, where
    ONNX Runtime looks for the dot product (``asimddp``).
    """

    name: str
    part: str
    features: str

    @property
    def python(self) -> Path:
        """Runs ARM's Python on it, with the packages of the runtime; a script, so that it may start itself again."""
        return FOLDER / self.name / "python3"


#: A phone's of 2018 and later, with the dot product; and one of 2015 (the Raspberry Pi 4's), without.
A76 = Cpu(
    "cortex-a76",
    "0xd0b",
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
)
A72 = Cpu("cortex-a72", "0xd08", "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid")
CPUS = (A76, A72)

#: helium_onnx as ``pip install`` leaves it where there is no compiler, and the same with our kernels, cross-compiled.
PACKAGE = FOLDER / "helium-onnx"
WITH_KERNELS = FOLDER / "helium-onnx-kernels"

_DEPENDENCIES = FOLDER / "packages"
_TEST_DEPENDENCIES = FOLDER / "test-packages"
_KERNELS = FOLDER / "kernels"
_ROOT = FOLDER / "root"
_APT = FOLDER / "apt"
_LOG = FOLDER / "log"

# PYTHONHOME: Python would look for its library beside the script; and with its real path the bytecode is written there.
# PYTHONSAFEPATH: the package is the installed one, and not a checkout in the folder where it is started.
# -0: it starts itself again by this script, which any kernel can run.
# OPENBLAS_NUM_THREADS: NumPy's threads spin, and qemu makes a spinning thread dear.
_PYTHON = """\
#!/bin/sh
export PYTHONHOME={folder}/root/usr PYTHONNOUSERSITE=1 PYTHONSAFEPATH=1 OPENBLAS_NUM_THREADS=1
export PYTHONPATH="${{PYTHONPATH-{packages}}}"
exec {qemu} -L {folder}/{cpu}/root -cpu {cpu} -0 "$0" {folder}/root/usr/bin/{python} "$@"
"""

_CPUINFO = """\
processor\t: {index}
BogoMIPS\t: 100.00
Features\t: {features}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: {part}
CPU revision\t: 1

"""


def make() -> None:
    """All of it. Raises UnavailableError where this machine lacks something or a package cannot be fetched."""
    if shutil.which(QEMU) is None:
        raise UnavailableError(f"there is no {QEMU}: apt-get install qemu-user-static")
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise UnavailableError(f"there is no {program}: Debian's arm64 packages are fetched with it")
    FOLDER.mkdir(parents=True, exist_ok=True)
    _LOG.write_text("")
    _make_once(_ROOT, "", _fetch_system)
    for cpu in CPUS:
        _write_cpu(cpu)
    constraints = (REPOSITORY / "constraints.txt").read_text()
    dependencies = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    for folder, packages in ((_DEPENDENCIES, dependencies), (_TEST_DEPENDENCIES, ("--no-deps", *TEST_PACKAGES))):
        _make_once(folder, repr(packages) + constraints, functools.partial(_fetch_wheels, folder, packages))
    _install_package()


def missing() -> str | None:
    """Why nothing can run in it, or None: it was made, and whole."""
    if shutil.which(QEMU) is None:
        return f"there is no {QEMU}: apt-get install qemu-user-static"
    if not all(_marker(folder).is_file() for folder in (_ROOT, _DEPENDENCIES, _TEST_DEPENDENCIES)):
        return f"there is no ARM64 environment in {FOLDER}: make arm64"
    return None


def python_name() -> str:
    """Debian's Python in the root, as ``python3.11``."""
    return sorted(path.name for path in (_ROOT / "usr/bin").glob("python3.*"))[0]


def environment(*, kernels: bool = False, tests: bool = False) -> dict[str, str]:
    """Variables for ``Cpu.python``: with our kernels, or not; with what tests need, or not."""
    folders = [WITH_KERNELS if kernels else PACKAGE, _DEPENDENCIES, *([_TEST_DEPENDENCIES] if tests else [])]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return inherited | {"PYTHONPATH": ":".join(map(str, folders))}


def _fetch_system() -> None:
    """Debian's Python for arm64 with all that it is linked with, unpacked. apt keeps its books in a folder of its own,
    in which arm64 is the machine's architecture and nothing is installed.
    """
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (_APT / folder).mkdir(parents=True, exist_ok=True)
    (_APT / "status").touch()
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Debug::NoLocking": "1",
        "Dir::State": _APT / "state",
        "Dir::State::status": _APT / "status",
        "Dir::Cache": _APT / "cache",
    }
    settings = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    _run("apt-get", "--quiet", *settings, "update", why="Debian's list of arm64 packages cannot be fetched")
    shown = subprocess.run(["apt-cache", *settings, "depends", "python3-minimal"], capture_output=True, text=True)
    found = sorted({word for word in shown.stdout.split() if word.startswith("python3.") and word.endswith("-minimal")})
    if not found:
        raise UnavailableError("apt's sources have no python3-minimal for arm64: it takes Debian's")
    python = found[-1].removesuffix("-minimal")
    wanted = (found[-1], f"lib{python}-stdlib", "libstdc++6")  # the last for ONNX Runtime
    install = ("install", "--yes", "--download-only", "--no-install-recommends", *wanted)
    _run("apt-get", "--quiet", *settings, *install, why="Debian's arm64 packages cannot be fetched")
    for package in sorted((_APT / "cache/archives").glob("*.deb")):
        _run("dpkg-deb", "--extract", str(package), str(_ROOT), why=f"{package.name} cannot be unpacked")
    shutil.rmtree(_APT)
    shutil.rmtree(_ROOT / "usr/share", ignore_errors=True)
    if not (_ROOT / "lib").exists():  # from Debian 13 on: a link of the package base-files, which is not among these
        (_ROOT / "lib").symlink_to("usr/lib")
    # Empty ones hide this machine's own, in which its processor's packages are.
    for folder in ("usr/lib/python3/dist-packages", f"usr/local/lib/{python}/dist-packages"):
        (_ROOT / folder).mkdir(parents=True, exist_ok=True)


def _write_cpu(cpu: Cpu) -> None:
    root = FOLDER / cpu.name / "root"
    (root / "proc").mkdir(parents=True, exist_ok=True)
    for path in _ROOT.iterdir():
        if not (root / path.name).is_symlink():
            (root / path.name).symlink_to(os.path.relpath(path, root))
    # qemu passes this machine's /proc/cpuinfo on: with x86's, ONNX Runtime crashes when it is loaded.
    cores = range(os.cpu_count() or 1)
    text = "".join(_CPUINFO.format(index=index, features=cpu.features, part=cpu.part) for index in cores)
    (root / "proc/cpuinfo").write_text(text)
    packages = f"{PACKAGE}:{_DEPENDENCIES}"
    script = _PYTHON.format(folder=FOLDER, packages=packages, qemu=QEMU, cpu=cpu.name, python=python_name())
    cpu.python.write_text(script)
    cpu.python.chmod(0o755)


def _fetch_wheels(target: Path, asked: Iterable[str]) -> None:
    platforms = [part for platform in _PLATFORMS for part in ("--platform", platform)]
    _pip(
        *("install", "--target", str(target), *platforms, "--python-version", python_name().removeprefix("python")),
        *("--implementation", "cp", "--only-binary", ":all:", "--constraint", str(REPOSITORY / "constraints.txt")),
        *asked,
        why=f"the aarch64 wheels for {python_name()} cannot be fetched",
    )


def _install_package() -> None:
    """The wheel without kernels, of the sources as they are; and where there is a cross compiler, one with kernels."""
    shutil.rmtree(PACKAGE, ignore_errors=True)
    install = ("install", "--no-deps", "--no-build-isolation", "--target", str(PACKAGE), str(REPOSITORY))
    _pip(*install, why="the wheel cannot be built", HELIUM_ONNX_KERNELS="0")
    if shutil.which(COMPILER) is None:
        shutil.rmtree(WITH_KERNELS, ignore_errors=True)
        return
    files = sorted((PACKAGE / "helium_onnx/kernels").rglob("*"))
    sources = [path for path in files if path.suffix in (".cpp", ".h") or path.name == "build.py"]
    _make_once(_KERNELS, "".join(path.read_text() for path in sources), _compile_kernels)
    shutil.rmtree(WITH_KERNELS, ignore_errors=True)
    shutil.copytree(PACKAGE, WITH_KERNELS)
    for library in _KERNELS.glob("*.so"):
        shutil.copy2(library, WITH_KERNELS / "helium_onnx/kernels")


def _compile_kernels() -> None:
    """By the user's own command, in ARM's Python; the compiler is this machine's."""
    made = PACKAGE / "helium_onnx/kernels"
    command = (str(A76.python), "-m", "helium_onnx.kernels.build")
    _run(*command, why="our kernels cannot be compiled for ARM64", CXX=COMPILER)
    for library in made.glob("*.so"):
        library.rename(_KERNELS / library.name)


def _make_once(folder: Path, depends: str, make_it: Callable[[], None]) -> None:
    """``make_it`` fills ``folder``, unless it was filled whole when this file and ``depends`` were the same."""
    digest = hashlib.sha256(Path(__file__).read_bytes() + depends.encode()).hexdigest()
    marker = _marker(folder)
    if folder.is_dir() and marker.is_file() and marker.read_text() == digest:
        return
    marker.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make_it()
    marker.write_text(digest)


def _marker(folder: Path) -> Path:
    """Says of what ``folder`` was made whole."""
    return folder.with_suffix(".whole")


def _pip(*arguments: str, why: str, **variables: str) -> None:
    _run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, why=why, **variables)


def _run(*command: str, why: str, **variables: str) -> None:
    """Run it; what it says goes to the log. Raises UnavailableError, with ``why`` and its last line."""
    done = subprocess.run(
        command,
        cwd=FOLDER,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | variables,
    )
    with _LOG.open("a") as log:
        log.write(f"{' '.join(command)}\n{done.stdout}\n")
    if done.returncode:
        last = next((line for line in reversed(done.stdout.splitlines()) if line.strip()), "it said nothing")
        raise UnavailableError(f"{why} ({last.strip()}; all of it: {_LOG})")


if __name__ == "__main__":
    try:
        make()
    except UnavailableError as error:
        sys.exit(f"{error}")
    print(FOLDER)
