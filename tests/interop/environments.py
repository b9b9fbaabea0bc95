"""Make the environments of the clients that tests/interop runs a bundle in, each from its registry at pinned versions.

    python tests/interop/environments.py [optimum genai transformers-js]     # all of them, where none is named

They lie under ``out/clients``, or where HELIUM_CLIENTS says. What is whole and up to date is left alone. A client that
cannot be installed is named in one line, with where its log is; the others are made all the same, and the exit code is
1.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CLIENTS = Path(__file__).parent / "clients"


@dataclass(frozen=True)
class Client:
    """One client's environment. ``pins`` lie in ``clients/<name>``: the environment is made anew when they change."""

    name: str
    pins: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where the environment is, or is to be."""
        default = Path(__file__).parents[2] / "out/clients"
        return Path(os.environ.get("HELIUM_CLIENTS", default)).resolve() / self.name

    @property
    def program(self) -> str:
        """What runs a script in it."""
        return str(self.folder / "bin/python") if "requirements.txt" in self.pins else "node"

    def is_whole(self) -> bool:
        marker = self.folder / "whole"
        return marker.is_file() and marker.read_text() == self._digest()

    def make(self) -> None:
        """Install anew. Raises CalledProcessError or OSError; what pip or npm said is in ``log`` beside the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")
        if "requirements.txt" in self.pins:
            self._run(sys.executable, "-m", "venv", str(self.folder))
            pip = (self.program, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off")
            pins = CLIENTS / self.name / "requirements.txt"
            # torch by itself first: where a CPU build of it can be had, pip takes that, and nothing later replaces it.
            for line in pins.read_text().splitlines():
                if line.startswith("torch=="):
                    self._run(*pip, line)
            self._run(*pip, "--requirement", str(pins))
        else:
            self.folder.mkdir()
            for name in self.pins:
                shutil.copyfile(CLIENTS / self.name / name, self.folder / name)
            # No install scripts: onnxruntime-node's would fetch libraries for CUDA, and all else is in the packages.
            self._run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=self.folder)
        (self.folder / "whole").write_text(self._digest())

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.name}.log")

    def _run(self, *command: str, cwd: Path | None = None) -> None:
        with self.log.open("a") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log, cwd=cwd)

    def _digest(self) -> str:
        pins = (CLIENTS / self.name / name for name in self.pins)
        return hashlib.sha256(b"".join(path.read_bytes() for path in pins)).hexdigest()


OPTIMUM = Client("optimum", ("requirements.txt",))
GENAI = Client("genai", ("requirements.txt",))
TRANSFORMERS_JS = Client("transformers-js", ("package.json", "package-lock.json"))
ALL = (OPTIMUM, GENAI, TRANSFORMERS_JS)


def main(names: list[str]) -> int:
    known = {client.name: client for client in ALL}
    if unknown := sorted(set(names) - set(known)):
        print(f"there is no client {', '.join(unknown)}; expected: {', '.join(known)}", file=sys.stderr)
        return 2
    failed = False
    for client in [known[name] for name in names] or ALL:
        if client.is_whole():
            print(f"{client.name}: there already, {client.folder}")
            continue
        try:
            client.make()
            print(f"{client.name}: made, {client.folder}")
        except (OSError, subprocess.CalledProcessError) as error:
            failed = True
            print(f"{client.name}: not made: {error}; its log is {client.log}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
