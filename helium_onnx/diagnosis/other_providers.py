"""Providers beside the CPU and CUDA: packages of their own, and what ONNX Runtime is built with on other systems."""

from __future__ import annotations

from importlib.util import find_spec

from helium_onnx.bundle import Bundle
from helium_onnx.diagnosis.recipes import Place
from helium_onnx.diagnosis.report import Finding, Machine
from helium_onnx.installed import version
from helium_onnx.runtimes.packaged import unloadable
from helium_onnx.runtimes.providers import PROVIDERS, ExecutionProvider, on_x86

PART = "others"
_EMULATED = "on the emulator alone, seconds a token: the NPU is a phone's"


def rows() -> list[ExecutionProvider]:
    """The rows that may be missing in ONNX Runtime's own package."""
    return [row for row in PROVIDERS.values() if row.plugin is not None or row.absent is not None]


def look(findings: list[Finding], available: tuple[str, ...]) -> None:
    """Add a line for each of them. ``available`` are ONNX Runtime's providers. Nothing is loaded."""
    for row in rows():
        why = missing(row, available)
        detail = why or _what_it_is(row)
        findings.append(Finding(PART, row.name, None if why else True, detail))


def missing(row: ExecutionProvider, available: tuple[str, ...]) -> str | None:
    """Why the provider cannot be loaded here, in a few words; None where it can."""
    if row.plugin is not None:
        return None if find_spec(row.plugin) else f"not installed: pip install --no-deps {row.package}"
    return None if row.onnxruntime_name in available else "not in ONNX Runtime's package for this system"


def place(row: ExecutionProvider, machine: Machine, available: tuple[str, ...], blocked: str | None) -> Place:
    """The memory that graphs for ``row`` are put into; ``blocked`` is what keeps all of ONNX Runtime from running."""
    why = missing(row, available)
    if why is not None and row.package is not None:
        why = f"no {row.package} here"
    note = _EMULATED if row.emulator_options and on_x86() else ""
    return Place("memory", machine.available_bytes, machine.memory_bytes, blocked=blocked or why, note=note)


def package_obstacle(bundle: Bundle) -> str | None:
    """Why a package cannot run here at all; None for bundles that are none."""
    if not {"prefill", "decode"} <= set(bundle.manifest.graphs):
        return f"a package for {bundle.manifest.package.get('target')}, which Python does not run"
    return unloadable(bundle)


def _what_it_is(row: ExecutionProvider) -> str:
    if row.package is None:
        return "in ONNX Runtime's package"
    package = row.package.partition("==")[0]
    name = f"{package} {version(package) or 'of an unknown version'}"
    if row.emulator_options and on_x86():
        return f"{name}: compiles for Snapdragon's NPU here, and emulates it"
    return f"{name}: for bundles of {', '.join(row.recipes)}, with --provider {row.name}"
