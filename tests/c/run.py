"""Build the C library and run its tests: what `make c` does.

    python tests/c/run.py [RESULTS]       # a folder for results in JUnit's form, c.xml and others

Parts, of which HELIUM_C_PARTS may name some:

- release: units, the interface over both kernels, every allocation failing, Python's tokenizer beside;
- address, thread: the same under AddressSanitizer and UndefinedBehaviorSanitizer, resp. ThreadSanitizer;
- valgrind: the units;
- fuzz: each target for HELIUM_FUZZ_SECONDS (60), two at a time;
- arm64: under qemu, in the environment of `make arm64`;
- jvm: Java and Kotlin over it.

Where this machine lacks something it prints one line, `SKIPPED: reason`, and goes on; with HELIUM_REQUIRE_C=1 it fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import c_environment
from c_environment import FOLDER, REPOSITORY, SOURCES, UnavailableError

_FUZZ_TARGETS = ("manifest", "tokenizer", "utf8", "session")


def main(arguments: list[str]) -> int:
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        print("expected: at most one argument, the folder for results", file=sys.stderr)
        return 2
    results = Path(arguments[0]).resolve() if arguments else FOLDER / "results"
    results.mkdir(parents=True, exist_ok=True)
    asked = os.environ.get("HELIUM_C_PARTS", " ".join(PARTS)).split()
    passed = failed = 0
    for name in asked:
        started = time.monotonic()
        try:
            PARTS[name](results)
        except UnavailableError as error:
            if os.environ.get("HELIUM_REQUIRE_C") == "1":
                print(f"{name}: required here, and cannot be had: {error}")
                failed += 1
            else:
                print(f"SKIPPED: {name}: {error}")
            continue
        except subprocess.CalledProcessError as error:
            print(f"{name}: FAILED with {error.returncode}: {' '.join(map(str, error.cmd))}", flush=True)
            failed += 1
            continue
        passed += 1
        print(f"{name}: passed in {time.monotonic() - started:.0f} s", flush=True)
    print(f"{passed} passed, {failed} failed")
    return int(failed > 0)


def run(*command: object, **options: object) -> None:
    """A program whose output is shown; CalledProcessError where it fails."""
    variables = c_environment.variables() | dict(options.pop("variables", {}))  # type: ignore[call-overload]
    subprocess.run([str(part) for part in command], check=True, env=variables, **options)  # type: ignore[call-overload]


def build(preset: str, *settings: str, compiler: str = "c++") -> Path:
    """The folder of a preset of runtimes/c/CMakePresets.json, built."""
    for program in ("cmake", "ninja", compiler):
        if shutil.which(program) is None:
            raise UnavailableError(f"there is no {program}")
    if not any(Path(folder, "doctest/doctest.h").is_file() for folder in ("/usr/include", "/usr/local/include")):
        raise UnavailableError("there is no doctest: apt-get install doctest-dev")
    include = c_environment.header_folder()
    settings = (f"-DHELIUM_ONNXRUNTIME_INCLUDE_DIR={include}", *settings)
    quiet = {"cwd": SOURCES, "stdout": subprocess.DEVNULL}
    run("cmake", "--preset", preset, *settings, **quiet)
    run("cmake", "--build", "--preset", preset, cwd=SOURCES)
    return FOLDER / preset


def interface(program: list[object], **variables: str) -> None:
    """The tests through the C++ header, over our kernels and over ONNX Runtime's."""
    for bundle in c_environment.bundles().values():
        run(*program, variables={**variables, "HELIUM_BUNDLE": str(bundle)})


def release(results: Path) -> None:
    folder = build("release")
    run(folder / "tests/units")
    interface([folder / "tests/interface"])
    run(folder / "tests/memory")
    run(
        *(sys.executable, "-m", "pytest", f"--junitxml={results}/c.xml", Path(__file__).parent),
        variables={
            "HELIUM_C_LIBRARY": str(folder / "libhelium_onnx.so"),
            "HELIUM_ONNXRUNTIME_INCLUDE_DIR": str(c_environment.header_folder()),
            "HELIUM_REQUIRE_C": "1",
        },
        cwd=REPOSITORY,
    )


def address(_results: Path) -> None:
    folder = build("address")
    run(folder / "tests/units")
    interface([folder / "tests/interface"])


def thread(_results: Path) -> None:
    """ONNX Runtime's own threads are not instrumented: what it does among them is no finding."""
    folder = build("thread")
    suppressions = Path(__file__).with_name("thread.supp")
    interface(
        [folder / "tests/interface", "--source-file=*threads*,*conversation*"],
        TSAN_OPTIONS=f"suppressions={suppressions} ignore_noninstrumented_modules=1",
    )


def valgrind(_results: Path) -> None:
    if shutil.which("valgrind") is None:
        raise UnavailableError("there is no valgrind: apt-get install valgrind")
    folder = build("release")
    # valgrind knows no AVX-512; ONNX Runtime's kernels and ours then take others.
    run(
        "valgrind",
        "--quiet",
        "--error-exitcode=9",
        "--leak-check=full",
        "--errors-for-leak-kinds=definite",
        folder / "tests/units",
    )


def fuzz(_results: Path) -> None:
    folder = build("fuzz", compiler="clang++") / "fuzz"
    seconds = os.environ.get("HELIUM_FUZZ_SECONDS", "60")

    def one(name: str) -> None:
        found = folder / "found" / name
        found.mkdir(parents=True, exist_ok=True)
        corpus = SOURCES / "fuzz/corpus" / name
        run(
            folder / f"{name}_fuzz",
            f"-max_total_time={seconds}",
            "-timeout=10",
            "-rss_limit_mb=2048",
            "-verbosity=0",
            found,
            corpus,
            cwd=folder,
        )

    with ThreadPoolExecutor(2) as beside:  # one thread each
        for _ in beside.map(one, _FUZZ_TARGETS):
            pass


def arm64(_results: Path) -> None:
    """On an imitated processor with the dot product and one without; float32 tokens are those of tests/vectors.

    The whole interface by hand: qemu-aarch64-static -L ... out/c/arm64/tests/interface.
    """
    sys.path.insert(0, str(REPOSITORY / "tests/arm64"))
    import environment as processors

    if (missing := processors.missing()) is not None:
        raise UnavailableError(missing)
    folder = build("arm64", compiler=processors.COMPILER)
    [library] = processors.FOLDER.glob("packages/onnxruntime/capi/libonnxruntime.so.*")
    for cpu in processors.CPUS:
        qemu = [processors.QEMU, "-L", processors.FOLDER / cpu.name / "root", "-cpu", cpu.name]
        own = {"HELIUM_ONNXRUNTIME": str(library)}
        bundles = c_environment.bundles()
        if cpu is processors.A76:
            run(*qemu, folder / "tests/units")
            # What depends on the processor: the others, arguments and damaged files, would take ten minutes.
            parts = {
                "fp32": "--source-file=*generation*,*threads*",
                "int4": "--test-case=*goes on*,*beside each other*",
            }
        else:
            parts = {"fp32": "--source-file=*generation*"}  # other kernels, which the tokens show
        for name, chosen in parts.items():
            run(*qemu, folder / "tests/interface", chosen, variables={**own, "HELIUM_BUNDLE": str(bundles[name])})


def jvm(_results: Path) -> None:
    """runtimes/android on a plain JVM."""
    for program in ("javac", "kotlinc"):
        if shutil.which(program) is None:
            raise UnavailableError(f"there is no {program}: apt-get install kotlin junit4 openjdk-17-jdk-headless")
    run(
        *(sys.executable, REPOSITORY / "runtimes/android/tests/run.py"),
        variables={
            "HELIUM_ONNXRUNTIME_INCLUDE_DIR": str(c_environment.header_folder()),
            "HELIUM_REQUIRE_JVM": os.environ.get("HELIUM_REQUIRE_C", "0"),
        },
    )


PARTS: dict[str, Callable[[Path], None]] = {
    "release": release,
    "address": address,
    "thread": thread,
    "valgrind": valgrind,
    "fuzz": fuzz,
    "arm64": arm64,
    "jvm": jvm,
}

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
