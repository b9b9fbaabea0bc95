"""Where the tests of WebGPU run: onnxruntime-ep-webgpu over the software GPU (SwiftShader) that Debian's chromium has.

The package is importable, or lies in a folder of its own: pip install --no-deps --target out/clients/webgpu
onnxruntime-ep-webgpu==0.4.0 (HELIUM_CLIENTS names another folder than out/clients).
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from pathlib import Path

import pytest

CHROMIUM = Path("/usr/lib/chromium")
CLIENTS = Path(os.environ.get("HELIUM_CLIENTS", Path(__file__).parents[1] / "out" / "clients"))
PACKAGE = "onnxruntime_ep_webgpu"


def environment() -> dict[str, str]:
    """The environment of a process that finds package and GPU. Skips the test where something is missing; with
    HELIUM_REQUIRE_WEBGPU=1 it fails.
    """
    folder = CLIENTS / "webgpu"
    driver = CHROMIUM / "vk_swiftshader_icd.json"
    found = importlib.util.find_spec(PACKAGE) is not None
    missing = [
        text
        for text, there in (
            (f"{PACKAGE} is not installed, nor in {folder}", found or (folder / PACKAGE).is_dir()),
            (f"there is no {driver} (Debian's chromium)", driver.is_file()),
        )
        if not there
    ]
    if missing:
        if os.environ.get("HELIUM_REQUIRE_WEBGPU") == "1":
            pytest.fail("; ".join(missing))
        pytest.skip("; ".join(missing))
    result = {**os.environ, "VK_ICD_FILENAMES": str(driver), "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "1"}
    if not found:
        result["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    try:
        ctypes.CDLL("libvulkan.so.1")
    except OSError:  # chromium brings its own
        result["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, (str(CHROMIUM), os.environ.get("LD_LIBRARY_PATH"))))
    return result
