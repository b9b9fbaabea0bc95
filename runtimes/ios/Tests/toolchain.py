"""Debian with Swift in a folder, and commands in it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
SUITE = "trixie"
PACKAGES = ["swiftlang", "libc6-dev", "libstdc++-14-dev", "libgcc-14-dev", "libc++-19-dev"]
HEADER = "header/usr/include/onnxruntime"


def say(text: str) -> None:
    print(text, flush=True)


class MissingError(Exception):
    """What this machine lacks."""


def mirror() -> str:
    """Where this machine's own Debian packages come from."""
    for file in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]:
        text = file.read_text() if file.is_file() else ""
        if match := re.search(r"^(?:URIs:|deb(?:\s+\[.*?\])?)\s+(\S+/debian)/?(?:\s|$)", text, re.MULTILINE):
            return match[1]
    raise MissingError("apt's sources name no mirror of Debian")


def make_root(root: Path) -> None:
    """Make the folder, unless it is there; raise MissingError where that, or mounting in it, cannot be done."""
    if os.geteuid() != 0:
        raise MissingError("chroot needs root")
    for tool in ("debootstrap", "unshare", "chroot"):
        if not shutil.which(tool):
            raise MissingError(f"{tool} is not installed (apt-get install debootstrap util-linux)")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        raise MissingError("mount namespaces are not allowed here")
    if (root / HEADER / "onnxruntime_c_api.h").exists():
        return
    if platform.machine() not in ("x86_64", "aarch64"):
        raise MissingError(f"Debian has no Swift for {platform.machine()}")
    if shutil.disk_usage(root.parent).free < 6e9:
        raise MissingError(f"{root.parent} has less than 6 GB free")
    started = time.monotonic()
    try:
        if not (root / "usr/bin/apt-get").exists():
            subprocess.run(
                ["debootstrap", "--variant=minbase", SUITE, root, mirror()], check=True, stdout=subprocess.DEVNULL
            )
        apt = ["chroot", str(root), "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
        subprocess.run(
            [*apt, "install", "-y", "--no-install-recommends", *PACKAGES],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        subprocess.run([*apt, "clean"], check=True)
        # The header alone: its library would bring 75 MB.
        (root / "header").mkdir(exist_ok=True)
        fetch = "cd /header && apt-get -qq -o APT::Sandbox::User=root download libonnxruntime-dev"
        subprocess.run(["chroot", root, "bash", "-c", fetch + " && dpkg -x *.deb . && rm *.deb"], check=True)
    except subprocess.CalledProcessError as error:
        raise MissingError(f"Debian's packages cannot be had: {error}; delete {root} before another try") from error
    size = subprocess.run(
        ["du", "-sm", f"--exclude={root}/job", root], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    say(f"toolchain: {time.monotonic() - started:.0f} s, {int(size) / 1000:.1f} GB")


class Chroot:
    """Commands in the toolchain's folder: the repository at /repository (read-only), the bundle at /bundle."""

    def __init__(self, root: Path, bundle: Path, runtime: Path, include: Path) -> None:
        self.root = root
        mounts = {"repository": REPOSITORY, "bundle": bundle, "include": include}
        script = [
            f'R="{root}"',
            'mount -t proc proc "$R/proc"',
            'mount --rbind /dev "$R/dev"',
            'mount -t tmpfs tmpfs "$R/tmp"',
        ]
        for name, source in mounts.items():
            (root / name).mkdir(exist_ok=True)
            script += [f'mount --bind "{source}" "$R/{name}"', f'mount -o remount,bind,ro "$R/{name}"']
        (root / "job").mkdir(exist_ok=True)
        shutil.copy(runtime, root / "job/libonnxruntime.so.1")
        path = "PATH=/usr/bin:/bin:/usr/libexec/swift/bin"
        self.script = " && ".join([*script, f'exec chroot "$R" env -i HOME=/root LANG=C.UTF-8 {path} "$@"'])

    def run(self, *command: str, cwd: str = "/repository/runtimes/ios", variables: dict[str, str] | None = None) -> str:
        shell = f'cd {cwd} && exec "$@"'
        settings = [f"{name}={value}" for name, value in (variables or {}).items()]
        inner = ["env", *settings, "bash", "-c", shell, "_", *command]
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "bash", "-c", self.script, "_", *inner],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace",
        )  # fmt: skip
        if done.returncode:
            errors = [line for line in done.stdout.splitlines() if "error:" in line]
            say("\n".join([done.stdout[-3000:], "", *dict.fromkeys(errors)]))
            raise SystemExit(f"failed: {' '.join(command)}")
        return done.stdout
