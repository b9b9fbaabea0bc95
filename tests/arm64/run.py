"""Make the ARM64 environment and run tests/arm64 in two processes at once: what `make arm64` does.

    python tests/arm64/run.py [RESULTS]       # a folder for results in JUnit's form, arm64.xml and arm64-runtime.xml

Where this machine cannot have the environment it prints one line, `SKIPPED: reason`, and ends with 0; with
HELIUM_REQUIRE_ARM64=1 it ends with 1.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import environment

HERE = Path(__file__).parent
#: qemu uses one core: the comparisons, and beside them the command line and the runtime's own tests.
PARTS = {"arm64": ("test_tokens.py",), "arm64-runtime": ("test_command_line.py", "test_runtime.py")}


def main(arguments: list[str]) -> int:
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        print("expected: at most one argument, the folder for results", file=sys.stderr)
        return 2
    try:
        environment.make()
    except environment.UnavailableError as error:
        required = os.environ.get("HELIUM_REQUIRE_ARM64") == "1"
        print(f"ARM64 is required here, and cannot be had: {error}" if required else f"SKIPPED: {error}")
        return int(required)
    results = Path(arguments[0]).resolve() if arguments else None
    failed = False
    with ThreadPoolExecutor(len(PARTS)) as beside:
        # Each part's output by itself: both at once on one terminal would be unreadable.
        for done in beside.map(lambda name: run_part(name, results), PARTS):
            print(done.stdout, flush=True)
            failed |= done.returncode != 0
    return int(failed)


def run_part(name: str, results: Path | None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "--durations=0", *(str(HERE / file) for file in PARTS[name])]
    if results is not None:
        command.append(f"--junitxml={results / name}.xml")
    return subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | {"HELIUM_REQUIRE_ARM64": "1"},
        cwd=environment.REPOSITORY,
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
