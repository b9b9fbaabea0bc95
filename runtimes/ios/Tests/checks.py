"""What is checked of the package, one step a method; each returns what it found, in words."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolchain import REPOSITORY, Chroot, say

PACKAGE = REPOSITORY / "runtimes/ios"

# Of Combine and Darwin, as much as the app's files without SwiftUI use.
STAND_IN = """
protocol ObservableObject: AnyObject {}
@propertyWrapper struct Published<Value> { var wrappedValue: Value }
func footprint() -> Int64 { 0 }
"""


class Checks:
    def __init__(self, chroot: Chroot, jobs: int, bundle_url: str) -> None:
        self.chroot = chroot
        self.jobs = jobs
        self.log: list[str] = []
        self.variables = {
            "HELIUM_BUNDLE": "/bundle",
            "HELIUM_BUNDLE_URL": bundle_url,
            "HELIUM_EXPECTED": "/job/expected.json",
            "HELIUM_VECTORS": "/repository/tests/vectors",
        }

    def steps(self) -> dict[str, Callable[[], str]]:
        return {
            "manifest": self.manifest,
            "libc++": self.libcxx,
            "swift 5": self.swift_5,
            "app": self.app,
            "linked": self.linked,
            "swift 6": self.swift_6,
            "packaged": self.packaged,
        }

    def manifest(self) -> str:
        """Package.swift as Linux and as macOS read it."""
        linux = self._dump("/repository/runtimes/ios", "linux")
        assert not linux["dependencies"]
        # The condition is the compiling machine's: another system's name in its place leads to the other branch.
        copy = self._copy("apple")
        text = (copy / "Package.swift").read_text()
        (copy / "Package.swift").write_text(text.replace("#if os(Linux)", "#if os(Windows)"))
        apple = self._dump("/job/apple", "apple.build")
        (dependency,) = apple["dependencies"]
        lowest = dependency["sourceControl"][0]["requirement"]["range"][0]["lowerBound"]
        platforms = ", ".join(f"{item['platformName']} {item['version']}" for item in apple["platforms"])
        products = " and ".join(product["name"] for product in apple["products"])
        return f"{products} for {platforms}, with onnxruntime from {lowest}"

    def libcxx(self) -> str:
        """The core compiles against the C++ library that Apple's platforms have."""
        names = [path.name for path in (REPOSITORY / "runtimes/c/src").glob("*.cpp")]
        names.remove("no_generic_kernels.cpp")
        files = [f"src/{name}" for name in sorted(names)] + ["linked_runtime.cpp"]
        flags = (
            "-std=c++17 -fsyntax-only -nostdinc++ -isystem /usr/lib/llvm-19/include/c++/v1 -isystem /include "
            "-Iinclude -Isrc -Ddlsym=helium_dlsym -Wall -Wextra -Werror"
        )
        self.chroot.run("clang++", *flags.split(), *files, cwd="/repository/runtimes/ios/Sources/CHeliumOnnx")
        return f"{len(files)} files"

    def swift_5(self) -> str:
        """All tests, with all warnings."""
        strict = "-Xswiftc -strict-concurrency=complete -Xswiftc -warnings-as-errors -Xcxx -Wall -Xcxx -Werror"
        self._swift("build", "swift5", "--build-tests " + strict)
        return self._tests("swift5", strict, {"HELIUM_ONNXRUNTIME": "/job/libonnxruntime.so.1"})

    def app(self) -> str:
        """All of the sample app is parsed, what does not need SwiftUI type-checked, over the modules of `swift_5`."""
        files = sorted(path.relative_to(PACKAGE).as_posix() for path in (PACKAGE / "App").rglob("*.swift"))
        self.chroot.run("swiftc", "-parse", "-swift-version", "5", *files)
        (self.chroot.root / "job/StandIn.swift").write_text(STAND_IN)
        checked = ["App/Sources/ModelFolder.swift", "App/Sources/Writer.swift"]
        modules = "-typecheck -warnings-as-errors -I /job/swift5/debug/Modules -I Sources/CHeliumOnnx/include"
        for mode in ("-swift-version 5 -strict-concurrency=complete", "-swift-version 6"):
            self.chroot.run("swiftc", *modules.split(), *mode.split(), *checked, "/job/StandIn.swift")
        return f"{len(files)} files parsed, {len(checked)} type-checked"

    def linked(self) -> str:
        """The same tests where ONNX Runtime is linked in, as in an app, and symbols are stripped."""
        flags = (
            "-c release -Xswiftc -enable-testing -Xcxx -Ddlsym=helium_dlsym "
            "-Xlinker /job/libonnxruntime.so.1 -Xlinker -s"
        )
        found = self._tests("linked", flags, {"LD_LIBRARY_PATH": "/job"})
        tests = "/job/linked/release/HeliumOnnxPackageTests.xctest"
        symbols = self.chroot.run("nm", "-D", "--undefined-only", tests)
        assert re.search(r" U OrtGetApiBase\b", symbols), "the linker did not bind OrtGetApiBase"
        return found

    def swift_6(self) -> str:
        """Without tests: what SwiftPM 6.0 itself generates for XCTest on Linux does not compile in this mode."""
        self._swift("build", "swift6", "-Xswiftc -swift-version -Xswiftc 6 -Xswiftc -warnings-as-errors")
        return "built"

    def packaged(self) -> str:
        """A copy with files in the place of links."""
        copy = self._copy("packaged")
        assert not any(path.is_symlink() for path in copy.rglob("*"))
        self._swift("build", "packaged.build", "-c release --product HeliumOnnx", cwd="/job/packaged")
        return "built"

    def _swift(
        self,
        command: str,
        scratch: str,
        flags: str,
        cwd: str = "/repository/runtimes/ios",
        variables: dict[str, str] | None = None,
    ) -> str:
        common = f"--scratch-path /job/{scratch} -j {self.jobs} -Xcxx -isystem/include"
        return self.chroot.run("swift", command, *common.split(), *flags.split(), cwd=cwd, variables=variables)

    def _tests(self, scratch: str, flags: str, variables: dict[str, str]) -> str:
        """How many tests ran; none may be skipped."""
        output = self._swift("test", scratch, flags, variables={**self.variables, **variables})
        cases = re.findall(r"^Test Case '(.*)' (passed|failed|skipped)", output, re.MULTILINE)
        self.log += [f"{scratch}: {name} {outcome}" for name, outcome in cases]
        if not cases or any(outcome != "passed" for _, outcome in cases):
            say(output[-6000:])
            raise SystemExit("failed: tests were skipped, or did not run")
        return f"{len(cases)} tests"

    def _dump(self, folder: str, scratch: str) -> dict[str, Any]:
        output = self.chroot.run("swift", "package", "dump-package", "--scratch-path", f"/job/{scratch}", cwd=folder)
        found: dict[str, Any] = json.loads(output[output.index("{") :])
        return found

    def _copy(self, name: str) -> Path:
        """The package as it is handed on."""
        target = self.chroot.root / "job" / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(PACKAGE, target, symlinks=False, ignore=shutil.ignore_patterns(".build", "App"))
        return target
