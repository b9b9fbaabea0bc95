"""The programs and JARs that the tests need, and running them."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from report import FailedError

#: Debian's packages put their JARs here.
JARS = Path("/usr/share/java")
#: What is found in JARS, and in which package; the last two are for tests that are skipped without.
JUNIT = ("junit4.jar", "hamcrest-core.jar")
KOTLIN = ("kotlin-stdlib.jar",)
COROUTINES = ("kotlinx-coroutines-core.jar", "kotlinx-coroutines-core-common.jar", "atomicfu.jar")
JSON = ("com.android.json.jar",)


def run(command: Sequence[str | Path], **environment: str) -> str:
    """Both outputs of a program. FailedError where it fails or cannot be started."""
    try:
        done = subprocess.run(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=os.environ | environment,
        )
    except OSError as error:
        raise FailedError(f"{command[0]} cannot be started: {error}") from None
    if done.returncode != 0:
        raise FailedError(f"{Path(command[0]).name} ended with {done.returncode}:\n{done.stdout.strip()}")
    return done.stdout


def jars(names: Sequence[str]) -> list[Path]:
    """Their paths; empty where one is missing."""
    found = [JARS / name for name in names]
    return found if all(path.exists() for path in found) else []


def missing() -> str | None:
    """Why nothing can be tested here, with the remedy; None: all is there."""
    for program, package in (("cmake", "cmake"), ("javac", "openjdk-17-jdk-headless"), ("kotlinc", "kotlin")):
        if shutil.which(program) is None:
            return f"no {program} (Debian: {package})"
    if not jars(JUNIT):
        return "no JUnit 4 (Debian: junit4)"
    if not (java_home() / "include/jni.h").exists():
        return f"no jni.h in {java_home()}/include (a JDK has it)"
    return None


@functools.cache
def java_home() -> Path:
    return Path(shutil.which("javac") or "javac").resolve().parents[1]


def classpath(*parts: Path) -> str:
    return os.pathsep.join(map(str, parts))


def javac(sources: Sequence[Path], target: Path, *on_path: Path) -> None:
    """Java 8, which Android's tools take; warnings are errors."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    options = ["--release", "8", "-Xlint:all,-options,-path", "-Werror", "-encoding", "UTF-8"]
    run(["javac", *options, "-cp", classpath(target, *on_path), "-d", target, *sources])


def kotlinc(sources: Sequence[Path], target: Path, *on_path: Path) -> None:
    """Warnings are not errors: a newer kotlinc knows other ones."""
    shutil.rmtree(target, ignore_errors=True)
    run(["kotlinc", "-jvm-target", "1.8", "-cp", classpath(*on_path), "-d", target, *sources])


def cmake(source: Path, build: Path, *definitions: str) -> None:
    """Configure and build, one job at a time."""
    run(["cmake", "-S", source, "-B", build, f"-DJAVA_HOME={java_home()}", "-DCMAKE_BUILD_TYPE=Release", *definitions])
    run(["cmake", "--build", build, "-j1"])
