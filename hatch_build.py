"""Compiles our kernels into the wheel where a compiler is there; for an editable install, into the checkout.

Of those for CUDA it is the operators; the kernels are compiled where the GPU is.

Without one the wheel is pure Python and runs on ONNX Runtime's own kernels. HELIUM_ONNX_KERNELS=0 asks for that,
HELIUM_ONNX_KERNELS=1 makes a failed build an error.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelsBuildHook(BuildHookInterface):
    """Sets the wheel's tag to this platform where the library was built."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Called by hatchling before a wheel is put together; ``version`` is ``standard`` or ``editable``."""
        asked = os.environ.get("HELIUM_ONNX_KERNELS", "")
        if asked == "0":
            return
        path = Path(self.root) / "helium_onnx" / "kernels" / "build.py"
        spec = importlib.util.spec_from_file_location("helium_onnx_kernels_build", path)
        assert spec is not None
        assert spec.loader is not None
        kernels = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(kernels)
        try:
            kernels.build()
            kernels.build(kernels.DEVICE_LIBRARY, kernels.DEVICE_SOURCES)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            if asked == "1":
                raise
            self.app.display_warning(f"without native kernels: {error}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        for library in (kernels.LIBRARY, kernels.DEVICE_LIBRARY):
            build_data["artifacts"].append(f"helium_onnx/kernels/{library.name}")
