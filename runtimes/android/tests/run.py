"""Build the JNI library for this machine, compile Java and Kotlin, and run the tests on a plain JVM.

    HELIUM_BUNDLE=BUNDLE HELIUM_ONNXRUNTIME=libonnxruntime.so python runtimes/android/tests/run.py

HELIUM_ONNXRUNTIME_INCLUDE_DIR names the folder of onnxruntime_c_api.h where CMake does not find it. Where this machine
cannot run the tests it prints one line, `SKIPPED: reason`, and ends with 0; with HELIUM_REQUIRE_JVM=1 it ends with 1.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

import checks
import jvm
import tools
from layout import ANDROID, APP, MAIN, REPOSITORY
from report import Report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = REPOSITORY / "out/android"
    parser.add_argument("--build-dir", type=Path, default=default, help="for what is built (%(default)s)")
    build = parser.parse_args().build_dir.resolve()
    if reason := tools.missing() or _without("HELIUM_BUNDLE", "HELIUM_ONNXRUNTIME"):
        required = os.environ.get("HELIUM_REQUIRE_JVM") == "1"
        print(f"the JVM tests are required here, and cannot be run: {reason}" if required else f"SKIPPED: {reason}")
        return int(required)
    report = Report()
    for file in sorted(ANDROID.glob("*/src/main/**/*.xml")):
        report.check(f"XML of {file.relative_to(ANDROID)}", partial(checks.xml_is_well_formed, file))
    manifest = APP / "AndroidManifest.xml"
    report.check("manifest of the app", lambda: checks.manifest_is_known(manifest, "org.heliumonnx.sample"))
    scripts = sorted(ANDROID.glob("*.gradle.kts")) + sorted(ANDROID.glob("*/build.gradle.kts"))
    report.check("syntax of Gradle's scripts", lambda: checks.scripts_parse(scripts))

    include = "-DHELIUM_ONNXRUNTIME_INCLUDE_DIR=" + os.environ.get("HELIUM_ONNXRUNTIME_INCLUDE_DIR", "")
    host = build / "host"
    if report.check("JNI library", lambda: tools.cmake(MAIN / "cpp", host, include, "-DHELIUM_BUILD_SAMPLES=ON")):
        report.check("exported symbols", lambda: checks.exported_symbols(host / "libhelium_onnx_jni.so"))
        jvm.test(report, build)
    report.check("ARM64 library", lambda: checks.arm64(MAIN / "cpp", build / "arm64", include))
    print(report)
    return int(report.failed > 0)


def _without(*names: str) -> str | None:
    for name in names:
        if not Path(os.environ.get(name) or "/nowhere").exists():
            return f"{name} names no file: found '{os.environ.get(name, '')}'"
    return None


if __name__ == "__main__":
    raise SystemExit(main())
