"""Compile the library, the sample app and their tests, and run these on a plain JVM."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import tools
import vectors
from layout import APP, MAIN, REPOSITORY, TESTS
from report import FailedError, Report

#: Folders of classes, in the order of their making: each may use those before it.
PARTS = ("java", "kotlin", "java-tests", "android", "app", "kotlin-tests")
#: A heap of one size, so that a test may measure what native code holds. JNI's rules are checked at each call.
OPTIONS = ("-Xcheck:jni", "-Xms128m", "-Xmx128m", "-XX:+AlwaysPreTouch", "-XX:+UseSerialGC")


def test(report: Report, build: Path) -> None:
    """What lacks a JAR is skipped: GenerateFlow.kt without coroutines, the app without org.json."""
    coroutines, json = tools.jars(tools.COROUTINES), tools.jars(tools.JSON)
    classes = {part: build / "classes" / part for part in PARTS}
    on_path = [*classes.values(), *tools.jars(tools.KOTLIN), *tools.jars(tools.JUNIT), *coroutines, *json]

    library, tests = _sources(MAIN / "kotlin", "kt"), _sources(TESTS / "kotlin", "kt")
    if coroutines:
        library += _sources(TESTS / "imitations/kotlinx", "kt")
        tests += _sources(TESTS / "kotlin-flow", "kt")
    else:
        library = [file for file in library if file.name != "GenerateFlow.kt"]
        packages = "libkotlinx-coroutines-java, libkotlinx-atomicfu-java"
        report.skip("GenerateFlow.kt", f"no kotlinx-coroutines (Debian: {packages})")
    steps: list[tuple[str, Callable[[], None]]] = [
        ("Java of the library", lambda: tools.javac(_sources(MAIN / "java", "java"), classes["java"])),
        ("Kotlin of the library", lambda: tools.kotlinc(library, classes["kotlin"], *on_path)),
        ("Java of the tests", lambda: tools.javac(_sources(TESTS / "java", "java"), classes["java-tests"], *on_path)),
    ]
    if json:
        tests += _sources(TESTS / "kotlin-app", "kt")
        android = _sources(TESTS / "imitations/android", "java")
        steps += [
            ("imitation of Android", lambda: tools.javac(android, classes["android"])),
            ("Kotlin of the app", lambda: tools.kotlinc(_sources(APP / "kotlin", "kt"), classes["app"], *on_path)),
        ]
    else:
        report.skip("Kotlin of the app", "no org.json (Debian: libandroid-json-java)")
    steps.append(("Kotlin of the tests", lambda: tools.kotlinc(tests, classes["kotlin-tests"], *on_path)))
    if all(report.check(name, work) for name, work in steps):
        files = [file for file in [*_sources(TESTS / "java", "java"), *tests] if file.stem.endswith("Test")]
        _run(report, build / "host", on_path, sorted(_class_of(file) for file in files))


def _sources(folder: Path, extension: str) -> list[Path]:
    return sorted(folder.rglob(f"*.{extension}"))


def _class_of(file: Path) -> str:
    [package] = re.findall(r"^package ([\w.]+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    return f"{package}.{file.stem}"


def _run(report: Report, host: Path, on_path: list[Path], tests: list[str]) -> None:
    bundle = Path(os.environ["HELIUM_BUNDLE"]).resolve()
    with tempfile.TemporaryDirectory() as work:
        sample = REPOSITORY / "samples/helium-docs-7m/tokenizer.json"
        if sample.read_bytes() == (bundle / "tokenizer.json").read_bytes():
            vectors.write(REPOSITORY, Path(work, "vectors"))
        properties = {
            "org.heliumonnx.library": host / "libhelium_onnx_jni.so",
            "helium.sample": host / "helium_onnx/samples/helium",
            "helium.bundle": bundle,
            "helium.vectors": Path(work, "vectors"),
            "helium.work": work,
            "file.encoding": "UTF-8",
        }
        defined = [f"-D{name}={value}" for name, value in properties.items()]
        command = ["java", *OPTIONS, *defined, "-cp", tools.classpath(*on_path), "org.heliumonnx.RunTests", *tests]
        try:
            output = tools.run(command, LC_ALL="C.UTF-8")
        except FailedError as error:
            output = str(error)
    counted = re.search(r"^counted: (\d+) (\d+) (\d+)$", output, re.MULTILINE)
    print(re.sub(r"^counted: .*\n?", "", output, flags=re.MULTILINE).strip(), flush=True)
    if counted:
        passed, failed, skipped = map(int, counted.groups())
        report.passed += passed
        report.failed += failed
        report.skipped += skipped

    def ended() -> None:
        if not counted:
            raise FailedError("the JVM ended before its tests")

    def jni_rules() -> None:
        found = re.findall(r".*(?:WARNING in native method|FATAL ERROR in native method|JNI local refs).*", output)
        if found:
            raise FailedError("\n".join(found))

    report.check("all tests were run", ended)
    report.check("JNI's rules (-Xcheck:jni)", jni_rules)
