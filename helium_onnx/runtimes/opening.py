"""From a bundle to the session that runs it best on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from helium_onnx import contract, kernels
from helium_onnx.bundle import Bundle
from helium_onnx.contract import NativeGraph
from helium_onnx.errors import ProviderError, UsageError
from helium_onnx.progress import ProgressCallback, silent
from helium_onnx.runtimes.cuda_device import CudaDevice
from helium_onnx.runtimes.cuda_session import CudaSession
from helium_onnx.runtimes.graph_loading import checked_threads
from helium_onnx.runtimes.native_session import NativeSession, can_run
from helium_onnx.runtimes.onnxruntime_session import OnnxRuntimeSession
from helium_onnx.runtimes.packaged import check_graphs
from helium_onnx.runtimes.providers import AUTO, CPU, CUDA, WEBGPU, bundle_provider
from helium_onnx.runtimes.static_session import StaticSession, window_of
from helium_onnx.runtimes.webgpu_session import WebGpuSession

#: ``native``: those of helium_onnx/kernels. ``auto``: those where the bundle has them, and the machine vector code.
KernelChoice: TypeAlias = Literal["auto", "native", "onnxruntime"]


def open_session(
    bundle: Bundle,
    *,
    provider: str = AUTO,
    context_length: int | None = None,
    threads: int | None = None,
    choice: KernelChoice = "auto",
    spin: bool = True,
    cache: bool | None = None,
    cache_dir: Path | None = None,
    progress: ProgressCallback = silent,
) -> NativeSession | OnnxRuntimeSession | CudaSession | StaticSession:
    """A session for ``bundle``; see the four classes for the arguments.

    ``provider`` is one that the bundle is for, or ``auto``. One for CUDA takes no ``threads``, ``spin`` or ``cache``:
    nothing is computed on the host; one whose graphs have fixed shapes takes no ``spin`` or ``cache``.

    Raises:
        UsageError: ``choice`` is none of the three.
        BundleError: it is a package without the graphs that are run here.
        ProviderError: the bundle is for another provider, or the machine lacks what this one needs; native kernels
            were asked for, and bundle or machine lack them.
        And what loading raises.
    """
    choice = checked_choice(choice)
    check_graphs(bundle)
    row = bundle_provider(bundle, provider)
    if row is CUDA:
        checked_threads(threads)
        native = {"auto": None, "native": True, "onnxruntime": False}[choice]
        return CudaSession(
            bundle,
            cuda_device(bundle),
            context_length=context_length,
            native=native,
            cache_dir=cache_dir,
            progress=progress,
        )
    if row is WEBGPU:
        if choice == "native":
            raise ProviderError(
                "native kernels cannot run this",
                found=f"the execution provider {row.name}",
                remedy="leave the kernels to ONNX Runtime, or run on the CPU: --provider cpu",
            )
        return WebGpuSession(bundle, context_length=context_length, threads=threads, progress=progress)
    if window_of(bundle) is not None:
        if choice == "native":
            raise native_kernels_lack(bundle)
        return StaticSession(
            bundle,
            provider=row.name,
            context_length=context_length,
            threads=threads,
            cache_dir=cache_dir,
            progress=progress,
        )
    if runs_natively(bundle, provider=provider, choice=choice):
        return NativeSession(
            bundle, context_length=context_length, threads=threads, spin=spin, cache_dir=cache_dir, progress=progress
        )
    return OnnxRuntimeSession(
        bundle,
        provider=row.name,
        context_length=context_length,
        threads=threads,
        spin=spin,
        cache=cache,
        cache_dir=cache_dir,
        progress=progress,
    )


def runs_natively(bundle: Bundle, *, provider: str, choice: KernelChoice) -> bool:
    """Whether a session of these arguments is a NativeSession; raises what opening it would raise of them."""
    choice = checked_choice(choice)
    if bundle_provider(bundle, provider) is not CPU:
        return False
    possible = can_run(bundle)
    if choice == "native" and not possible:
        raise native_kernels_lack(bundle)
    return possible and (choice == "native" or (choice == "auto" and kernels.vectorized()))


def checked_choice(asked: str) -> KernelChoice:
    """``asked`` as one of the choices; UsageError where it is none."""
    choices: tuple[KernelChoice, ...] = get_args(KernelChoice)
    for choice in choices:
        if choice == asked:
            return choice
    raise UsageError("there are no such kernels", found=repr(asked), expected=", ".join(choices))


def cuda_device(bundle: Bundle) -> CudaDevice:
    """The GPU. What stands in the way is told to somebody who may not know that the bundle asks for one."""
    try:
        return CudaDevice()
    except ProviderError as error:
        raise ProviderError(
            error.what,
            found=error.found,
            expected=f"an NVIDIA GPU, which recipe {bundle.manifest.recipe.get('name')} is for",
            remedy=f"{error.remedy}; for this machine's CPU, export the checkpoint with --recipe {CPU.recipes[0]} "
            "(helium-onnx doctor shows what runs here)",
        ) from error


def native_kernels_lack(bundle: Bundle, graphs: Sequence[NativeGraph] = contract.NATIVE_GRAPHS) -> ProviderError:
    """What to raise where our kernels were asked for, and cannot run ``graphs`` of the bundle here."""
    if not set(graphs) <= set(bundle.manifest.graphs):
        found = "a bundle without native graphs"
        remedy = "export it anew with this version and 4- or 8-bit weights, as recipe cpu-int4 has them"
    elif not kernels.LIBRARY.exists():
        found = f"no {kernels.LIBRARY.name}"
        remedy = "install a C++ compiler and run python -m helium_onnx.kernels.build"
    else:
        found, remedy = f"{kernels.LIBRARY} cannot be loaded here", "build it here: python -m helium_onnx.kernels.build"
    return ProviderError("native kernels cannot run this", found=found, remedy=remedy)
