"""Bundles that were packaged for one place (helium_onnx.packaging): whether that place is here."""

from __future__ import annotations

from helium_onnx.bundle import Bundle
from helium_onnx.errors import BundleError, ProviderError
from helium_onnx.runtimes.providers import ExecutionProvider, on_x86

_REMEDY = "run the bundle that it was packaged from"


def check_graphs(bundle: Bundle) -> None:
    """Raise BundleError for a package without the two graphs that sessions run: another place may need fewer."""
    made_for = bundle.manifest.package.get("target")
    if made_for is None:
        return
    if missing := sorted({"prefill", "decode"} - set(bundle.manifest.graphs)):
        raise BundleError(
            f"{bundle.path} cannot be run from Python",
            found=f"no graph {' and '.join(missing)}, in a package for {made_for}",
            expected="prefill and decode",
            remedy=_REMEDY,
        )


def check_compiled(bundle: Bundle, row: ExecutionProvider) -> None:
    """Raise ProviderError where the graphs of ``bundle`` are compiled for another provider than that of ``row``, or
    cannot be loaded on this machine.
    """
    package = bundle.manifest.package
    compiled_for = package.get("execution_provider", row.name)
    if compiled_for != row.name:
        raise ProviderError(
            f"{bundle.path} cannot run on the execution provider {row.name}",
            found=f"graphs that are compiled for {compiled_for}, {package.get('device', 'a device')}",
            remedy=f"{_REMEDY}, or leave --provider at auto",
        )
    if (reason := unloadable(bundle)) is not None:
        raise ProviderError(
            f"{bundle.path} cannot be loaded on this machine",
            found=reason,
            expected=f"a device with {package.get('device', 'the NPU that it was compiled for')}",
            remedy=f"copy the folder to the device; to try it here, {_REMEDY}, or package it with --unshared",
        )


def unloadable(bundle: Bundle) -> str | None:
    """Why ONNX Runtime must not be given the graphs of ``bundle`` on this machine; None where it may."""
    if bundle.manifest.package.get("shared_weights") and on_x86():
        # onnxruntime-qnn 2.7.0 ends the whole process by a segmentation fault.
        return "prefill and decode share their weights, which the emulator of the NPU cannot load"
    return None


def package_options(bundle: Bundle) -> dict[str, str]:
    """Those of the device that the bundle's graphs are compiled for; none where they are not compiled."""
    options = bundle.manifest.package.get("provider_options", {})
    return {str(key): str(value) for key, value in options.items()} if isinstance(options, dict) else {}


def session_entries(bundle: Bundle) -> dict[str, str]:
    """Session config entries that loading the graphs of ``bundle`` takes.

    Source: ONNX Runtime's docs/execution-providers/EP-Context-Design.md, of sessions that share a binary. It was never
    run here: the emulator cannot.
    """
    return {"ep.share_ep_contexts": "1"} if bundle.manifest.package.get("shared_weights") else {}
