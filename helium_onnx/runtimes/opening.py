"""From a bundle to the session that runs it best on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias, get_args

from helium_onnx import contract, kernels
from helium_onnx.bundle import Bundle
from helium_onnx.errors import ProviderError, UsageError
from helium_onnx.progress import ProgressCallback, silent
from helium_onnx.runtimes.native_session import NativeSession, can_run
from helium_onnx.runtimes.onnxruntime_session import OnnxRuntimeSession

#: ``native``: those of helium_onnx/kernels. ``auto``: those where bundle and machine have them.
KernelChoice: TypeAlias = Literal["auto", "native", "onnxruntime"]


def open_session(
    bundle: Bundle,
    *,
    provider: str = "cpu",
    context_length: int | None = None,
    threads: int | None = None,
    choice: KernelChoice = "auto",
    spin: bool = True,
    cache: bool | None = None,
    cache_dir: Path | None = None,
    progress: ProgressCallback = silent,
) -> NativeSession | OnnxRuntimeSession:
    """A session for ``bundle``; see the two classes for the arguments.

    Raises:
        UsageError: ``choice`` is none of the three.
        ProviderError: native kernels were asked for, and bundle or machine lack them.
        And what loading raises.
    """
    if runs_natively(bundle, provider=provider, choice=choice):
        return NativeSession(
            bundle, context_length=context_length, threads=threads, spin=spin, cache_dir=cache_dir, progress=progress
        )
    return OnnxRuntimeSession(
        bundle,
        provider=provider,
        context_length=context_length,
        threads=threads,
        spin=spin,
        cache=cache,
        cache_dir=cache_dir,
        progress=progress,
    )


def runs_natively(bundle: Bundle, *, provider: str, choice: KernelChoice) -> bool:
    """Whether a session of these arguments runs on native kernels; raises what opening it would raise of them."""
    choice = checked_choice(choice)
    possible = provider == "cpu" and can_run(bundle)
    if choice == "native" and not possible:
        raise _not_native(bundle, provider)
    return possible and choice != "onnxruntime"


def checked_choice(asked: str) -> KernelChoice:
    """``asked`` as one of the choices; UsageError where it is none."""
    choices: tuple[KernelChoice, ...] = get_args(KernelChoice)
    for choice in choices:
        if choice == asked:
            return choice
    raise UsageError("there are no such kernels", found=repr(asked), expected=", ".join(choices))


def _not_native(bundle: Bundle, provider: str) -> ProviderError:
    if provider != "cpu":
        found, remedy = f"execution provider {provider}", "leave the kernels to ONNX Runtime, or use --provider cpu"
    elif not set(contract.NATIVE_GRAPHS) <= set(bundle.manifest.graphs):
        found = "a bundle without native graphs"
        remedy = "export it anew with this version and 4- or 8-bit weights, as recipe cpu-int4 has them"
    elif not kernels.LIBRARY.exists():
        found = f"no {kernels.LIBRARY.name}"
        remedy = "install a C++ compiler and run python -m helium_onnx.kernels.build"
    else:
        found, remedy = f"{kernels.LIBRARY} cannot be loaded here", "build it here: python -m helium_onnx.kernels.build"
    return ProviderError("native kernels cannot run this", found=found, remedy=remedy)
