"""What tests of the C library need beside a compiler: ONNX Runtime's C header, the library itself, and bundles.

The header is in no package of pip or npm. HELIUM_ONNXRUNTIME_INCLUDE_DIR names a folder that has it (an SDK's);
without, it is taken out of Debian's libonnxruntime-dev by apt, from this machine's own mirror. Nothing is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import helium_onnx

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = REPOSITORY / "runtimes/c"
FOLDER = REPOSITORY / "out/c"
HEADER = "onnxruntime_c_api.h"
#: The first suite of Debian that has the package.
_SUITE = "trixie"
_BUNDLES = {"int4": "cpu-int4", "fp32": "cpu-fp32"}


class UnavailableError(Exception):
    """This machine cannot have it; the text says what is missing, and the remedy."""


def header_folder() -> Path:
    """The folder of onnxruntime_c_api.h. Raises UnavailableError."""
    if named := os.environ.get("HELIUM_ONNXRUNTIME_INCLUDE_DIR"):
        if not (Path(named) / HEADER).is_file():
            raise UnavailableError(f"there is no {HEADER} in {named}, which HELIUM_ONNXRUNTIME_INCLUDE_DIR names")
        return Path(named)
    folder = FOLDER / "onnxruntime"
    if not (folder / HEADER).is_file():
        _fetch_header(folder)
    return folder


def onnxruntime_library() -> Path:
    """The shared library in the wheel of onnxruntime, which any other build may take the place of."""
    import onnxruntime

    [library] = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    return library


def bundles() -> dict[str, Path]:
    """The sample, exported once: ``int4`` with graphs for our kernels, ``fp32`` over ONNX Runtime's."""
    made = {}
    for name, recipe in _BUNDLES.items():
        made[name] = FOLDER / "bundles" / name
        if not (made[name] / "helium.json").is_file():
            helium_onnx.export(REPOSITORY / "samples/helium-docs-7m", made[name], recipe=recipe)
    return made


def variables() -> dict[str, str]:
    """The environment of the tests' programs."""
    paths = bundles()
    return os.environ | {
        "HELIUM_ONNXRUNTIME": str(onnxruntime_library()),
        "HELIUM_BUNDLE": str(paths["int4"]),
        "HELIUM_BUNDLE_FP32": str(paths["fp32"]),
    }


def _fetch_header(folder: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise UnavailableError(
            f"there is no {HEADER}: set HELIUM_ONNXRUNTIME_INCLUDE_DIR to the include folder of an SDK"
        )
    apt = FOLDER / "apt"
    shutil.rmtree(apt, ignore_errors=True)
    for name in ("state/lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(f"deb {_mirror()} {_SUITE} main\n")
    options = {
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Debug::NoLocking": "1",
        "Dir::Etc::SourceList": apt / "sources.list",
        "Dir::Etc::SourceParts": "-",
        "Dir::State": apt / "state",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
    }
    settings = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    for command in (("update",), ("download", "libonnxruntime-dev")):
        ended = subprocess.run(["apt-get", "--quiet", *settings, *command], cwd=apt, capture_output=True, text=True)
        if ended.returncode != 0:
            said = (ended.stderr.strip() or ended.stdout.strip()).splitlines()[-1:]
            raise UnavailableError(f"Debian's libonnxruntime-dev cannot be fetched: {' '.join(said)}")
    [package] = apt.glob("*.deb")
    subprocess.run(["dpkg-deb", "--extract", str(package), str(apt / "content")], check=True)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(apt / "content/usr/include/onnxruntime" / HEADER, folder / HEADER)
    shutil.rmtree(apt)


def _mirror() -> str:
    """Where this machine's own Debian packages come from."""
    for file in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]:
        if not file.is_file():
            continue
        for line in file.read_text().splitlines():
            if match := re.match(r"(?:URIs:|deb(?:\s+\[.*?\])?)\s+(\S+/debian)/?(?:\s|$)", line):
                return match[1]
    raise UnavailableError("apt's sources name no mirror of Debian")
