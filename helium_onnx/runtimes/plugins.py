"""Execution providers that come as a package of their own beside onnxruntime, and are registered with it."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from types import ModuleType

import onnxruntime as ort

from helium_onnx.errors import ProviderError
from helium_onnx.runtimes.providers import ExecutionProvider, on_x86


def add_plugin(options: ort.SessionOptions, row: ExecutionProvider, provider_options: Mapping[str, str]) -> None:
    """Let a session of ``options`` run on the provider of ``row``, which has a plugin, with the row's options and
    ``provider_options``.

    Raises:
        ProviderError: the package is missing or does not load, or sees no device.
    """
    assert row.plugin is not None
    try:
        with own_stdout(row):
            module = _registered(row.plugin, row.onnxruntime_name)
    except Exception as error:  # ImportError, and ONNX Runtime's, which have no base of their own
        raise _not_loaded(row, " ".join(str(error).split()) or type(error).__name__) from error
    devices = [device for device in ort.get_ep_devices() if device.ep_name == row.onnxruntime_name]
    if not devices:
        raise ProviderError(
            f"{row.onnxruntime_name} sees no device",
            expected=f"one that {row.package} supports",
            remedy=f"see the documentation of {row.package}; nothing is run on another provider in its place",
        )
    paths = {option: str(getattr(module, function)()) for option, function in row.plugin_paths.items()}
    emulated = row.emulator_options if on_x86() else {}
    options.add_provider_for_devices(
        devices[: row.plugin_devices], {**row.options, **emulated, **paths, **provider_options}
    )


def check_installed(row: ExecutionProvider) -> None:
    """Raise ProviderError where the package of ``row`` is missing; it is not loaded."""
    if row.plugin is not None and find_spec(row.plugin) is None:
        raise _not_loaded(row, f"No module named {row.plugin!r}")


@contextlib.contextmanager
def own_stdout(row: ExecutionProvider) -> Iterator[None]:
    """While a plugin's libraries are loaded, what they print on stdout goes to stderr: onnxruntime-qnn's do, and stdout
    is for the text that is generated.
    """
    kept = None
    if row.plugin is not None:
        sys.stdout.flush()
        with contextlib.suppress(OSError):  # a closed one
            kept = os.dup(1)
    if kept is None:
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _not_loaded(row: ExecutionProvider, text: str) -> ProviderError:
    return ProviderError(
        f"the execution provider {row.name} cannot be loaded",
        found=text[:300],
        expected=f"the package {row.package} beside onnxruntime {ort.__version__}",
        remedy=f"pip install --no-deps {row.package}",
    )


@functools.cache
def _registered(plugin: str, provider: str) -> ModuleType:
    """The plugin's module, its library registered: ONNX Runtime refuses a second time."""
    module = importlib.import_module(plugin)
    ort.register_execution_provider_library(provider, module.get_library_path())
    return module
