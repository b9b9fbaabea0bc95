"""Run a job in a client's environment, as a program of its own: JSON in, JSON out."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest
from environments import CLIENTS, Client


def require(client: Client) -> None:
    """Skip where the environment has not been made; fail instead where HELIUM_REQUIRE_CLIENTS says so."""
    if not client.is_whole():
        missing(f"{client.name}'s environment is not in {client.folder}: python tests/interop/environments.py")


def missing(what: str) -> None:
    if os.environ.get("HELIUM_REQUIRE_CLIENTS") == "1":
        pytest.fail(what)
    pytest.skip(what)


def run_script(client: Client, script: str, job: dict[str, Any], *, timeout: float = 600) -> Any:
    """What ``clients/<client>/<script>`` answers to ``job``. Raises RuntimeError with what it said where it failed."""
    require(client)
    path = CLIENTS / client.name / script
    # In its own folder: Node looks for packages there.
    done = subprocess.run(
        [client.program, str(path)],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        cwd=client.folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{client.name} ended with {done.returncode}: {done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])
