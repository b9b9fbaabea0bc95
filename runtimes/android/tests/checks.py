"""Checks of what is not run here: ARM64 libraries, XML, Gradle's scripts. Each raises FailedError or SkippedError."""

from __future__ import annotations

import re
import shutil
import tempfile
import xml.dom.minidom
from pathlib import Path
from xml.parsers.expat import ExpatError

import tools
from layout import REPOSITORY
from report import FailedError, SkippedError

#: Of Debian's android-framework-res: names of Android's attributes and styles.
FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")


def exported_symbols(library: Path) -> None:
    """JNI_OnLoad alone."""
    lines = tools.run(["nm", "-D", "--defined-only", library]).splitlines()
    names = [line.split()[-1] for line in lines]
    if names != ["JNI_OnLoad"]:
        raise FailedError(f"{library.name} exports {names}; expected JNI_OnLoad alone")


def arm64(source: Path, build: Path, include: str) -> None:
    """Debian's cross compiler takes the same CMake files, under the NDK's rule for where headers are found."""
    if shutil.which("aarch64-linux-gnu-g++") is None:
        raise SkippedError("no aarch64-linux-gnu-g++ (Debian: g++-aarch64-linux-gnu)")
    tools.cmake(
        source,
        build,
        include,
        f"-DCMAKE_TOOLCHAIN_FILE={REPOSITORY / 'runtimes/c/cmake/aarch64-linux-gnu.cmake'}",
        "-DCMAKE_FIND_ROOT_PATH=/usr/aarch64-linux-gnu",
        "-DCMAKE_FIND_ROOT_PATH_MODE_INCLUDE=ONLY",
    )
    exported_symbols(build / "libhelium_onnx_jni.so")
    for library in (build / "libhelium_onnx_jni.so", build / "helium_onnx/libhelium_onnx.so"):
        headers = tools.run(["readelf", "-lW", library], LC_ALL="C")
        alignments = {int(line.split()[-1], 16) for line in headers.splitlines() if line.split()[:1] == ["LOAD"]}
        if not alignments or any(alignment % 0x4000 for alignment in alignments):
            raise FailedError(f"{library.name} is aligned to {sorted(map(hex, alignments))}; expected pages of 16 KB")


def xml_is_well_formed(file: Path) -> None:
    try:
        xml.dom.minidom.parse(str(file)).unlink()
    except ExpatError as error:
        raise FailedError(f"{file}: {error}") from None


def manifest_is_known(file: Path, package: str) -> None:
    """aapt finds every attribute and style in Android's own resources (of Debian: Android 10)."""
    if shutil.which("aapt") is None or not FRAMEWORK.exists():
        raise SkippedError("no aapt or framework-res.apk (Debian: aapt, android-framework-res)")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "AndroidManifest.xml")  # Gradle would add the package's name
        copy.write_text(file.read_text(encoding="utf-8").replace("<manifest", f'<manifest package="{package}"', 1))
        tools.run(["aapt", "package", "-f", "-M", copy, "-I", FRAMEWORK, "-F", Path(folder, "app.apk")])


def scripts_parse(scripts: list[Path]) -> None:
    """kotlinc finds no error of syntax in Gradle's scripts. Names stay unresolved: Gradle is not here."""
    with tempfile.TemporaryDirectory() as folder:
        broken = Path(folder, "broken.gradle.kts")
        broken.write_text("android { minSdk = = 26 }\n")
        if not _syntax_errors([broken]):
            raise FailedError("kotlinc reports no error in a script that has one: its messages are not understood here")
    if errors := _syntax_errors(scripts):
        raise FailedError("\n".join(errors))


def _syntax_errors(scripts: list[Path]) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            tools.run(["kotlinc", "-nowarn", *scripts, "-d", folder])
        except FailedError as error:
            parser = re.compile(r"\.kts:\d+:\d+: error: (expecting|unexpected|missing|illegal|unclosed|unsupported)")
            return [line for line in str(error).splitlines() if parser.search(line)]
    return []
