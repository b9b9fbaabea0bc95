#!/usr/bin/env python3
"""Builds and tests the Swift package on Linux, with Debian's Swift (6.0) in a folder of its own.

    sudo python3 runtimes/ios/Tests/run.py --bundle BUNDLE

On an x86-64 Debian with 2 cores: the toolchain once 2 minutes and 2.7 GB (540 MB are downloaded), the steps 5 minutes
and 0.4 GB. It needs root for chroot and mounts, which live in a mount namespace of their own, and the packages
debootstrap and util-linux. Where they, root or the packages cannot be had, it says so and exits with 0; with
HELIUM_REQUIRE_SWIFT=1 with 1.

What runs (see README.md for what this cannot show):

    manifest     `swift package dump-package`, as Linux reads Package.swift and as macOS does
    libc++       the core's sources, compiled against the C++ library that Apple's platforms have
    swift 5      build with strict concurrency checks and warnings as errors; all tests
    app          the sample app: all files are parsed, those without SwiftUI type-checked
    linked       the same tests with ONNX Runtime linked into the executable, as in an app, and all symbols stripped
    swift 6      build in Swift 6's language mode
    packaged     build of a copy with files in the place of links
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from pathlib import Path

from checks import Checks
from references import expected, serve
from toolchain import HEADER, REPOSITORY, Chroot, MissingError, make_root, say


def main() -> int:
    arguments = parse()
    try:
        runtime = arguments.onnxruntime or next(iter(python_runtimes()), None)
        if not runtime:
            raise MissingError("there is no onnxruntime for this Python (pip install onnxruntime)")
        if not arguments.sample.exists():
            raise MissingError(f"the C sample is not built (cmake --preset release in runtimes/c): {arguments.sample}")
        make_root(arguments.root)
    except MissingError as reason:
        say(f"skipped: {reason}")
        return 1 if os.environ.get("HELIUM_REQUIRE_SWIFT") == "1" else 0

    root, bundle = arguments.root.resolve(), arguments.bundle.resolve()
    chroot = Chroot(root, bundle, runtime, (arguments.onnxruntime_include or root / HEADER).resolve())
    (root / "job/expected.json").write_text(json.dumps(expected(arguments.sample, bundle, runtime)))
    checks = Checks(chroot, arguments.jobs, bundle_url=serve(bundle))
    manifest = json.loads((bundle / "helium.json").read_text())
    lines = [
        next(line for line in chroot.run("swift", "--version").splitlines() if line.startswith("Swift version")),
        f"{runtime.name}, bundle {manifest['recipe']['name']} ({manifest['manifest_sha256'][:12]}...)",
    ]
    for line in lines:
        say(line)
    for name, check in checks.steps().items():
        started = time.monotonic()
        line = f"{name}: {check()}, {time.monotonic() - started:.0f} s"
        say(line)
        lines.append(line)
    if arguments.log:
        arguments.log.write_text("\n".join([*lines, "", *checks.log]) + "\n")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def add(name: str, default: Path | None, text: str, required: bool = False) -> None:
        parser.add_argument(name, type=Path, default=default, help=text, required=required)

    add("--bundle", None, "a bundle of samples/helium-docs-7m, exported with cpu-int4", required=True)
    add("--onnxruntime", None, "libonnxruntime.so (that of this Python's onnxruntime)")
    add("--onnxruntime-include", None, "folder of onnxruntime_c_api.h (that of Debian's libonnxruntime-dev)")
    add("--sample", REPOSITORY / "out/c/release/samples/helium", "the built C sample")
    add("--root", Path("/var/tmp/helium-swift"), "folder of the toolchain, which is kept")
    add("--log", None, "write what was checked here")
    parser.add_argument("--jobs", type=int, default=2)
    return parser.parse_args()


def python_runtimes() -> list[Path]:
    """The shared libraries of this Python's onnxruntime."""
    found = importlib.util.find_spec("onnxruntime")
    folders = list(found.submodule_search_locations or []) if found else []
    return [path for folder in folders for path in sorted(Path(folder, "capi").glob("libonnxruntime.so.*"))]


if __name__ == "__main__":
    sys.exit(main())
