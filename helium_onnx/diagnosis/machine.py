"""The processor, its memory, and ONNX Runtime: what runs without a GPU."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from helium_onnx.benchmark import conditions
from helium_onnx.diagnosis.report import Finding, Machine
from helium_onnx.installed import version

_T = TypeVar("_T")
_CGROUP = Path("/sys/fs/cgroup")
#: What this version was written for; pyproject.toml says it to pip.
ONNXRUNTIME = "1.31"


def attempt(findings: list[Finding], part: str, name: str, ask: Callable[[], _T], otherwise: _T) -> _T:
    """What ``ask`` returns; where it raises anything, ``otherwise``, and a finding that says so."""
    try:
        return ask()
    except Exception as error:
        findings.append(Finding(part, name, False, f"cannot be asked: {first_line(error)}"))
        return otherwise


def first_line(error: Exception) -> str:
    """What an error says, in one line with its kind."""
    said = (str(error).strip().splitlines() or [""])[0][:300]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def look(findings: list[Finding]) -> Machine:
    """The machine; ``findings`` gets a line for each part of it."""
    nothing: tuple[str, int | None] = (platform.machine() or "unknown", None)
    processor, cores = attempt(findings, "CPU", "processor", _processor, nothing)
    unknown: tuple[int | None, int | None] = (None, None)
    total, available = attempt(findings, "CPU", "memory", _memory, unknown)
    kernels = attempt(findings, "CPU", "our kernels", lambda: _kernels(findings), None)
    machine = Machine(processor, platform.machine(), cores, kernels, total, available)
    using = "" if cores is None else f", {cores} core{'s' * (cores != 1)} to use"
    facts = [Finding("CPU", "processor", True, f"{processor}{using}")]
    if total is not None and available is not None:
        facts.append(Finding("CPU", "memory", True, f"{available / 1e9:.1f} of {total / 1e9:.1f} GB free"))
    findings[:0] = [fact for fact in facts if fact.name not in {finding.name for finding in findings}]
    return machine


def look_at_onnxruntime(findings: list[Finding]) -> tuple[str | None, str | None, tuple[str, ...]]:
    """Version, package and providers of the onnxruntime that is imported; (None, None, ()) where it cannot be."""
    try:
        import onnxruntime as ort

        release, package = str(ort.__version__), str(getattr(ort, "package_name", "") or "onnxruntime")
        providers = tuple(str(name) for name in ort.get_available_providers())
    except Exception as error:
        gpu = version("onnxruntime-gpu")
        what = "'onnxruntime~=1.31.0'" if gpu is None else f"onnxruntime-gpu=={gpu}"
        remedy = f"pip install --force-reinstall --no-deps {what}"
        findings.append(Finding("CPU", "ONNX Runtime", False, f"cannot be imported: {first_line(error)}", remedy))
        return None, None, ()
    detail = f"{release}, of the package {package}: {', '.join(providers)}"
    fits = release.split(".")[:2] == ONNXRUNTIME.split(".")
    advice = f"this helium-onnx was made for {ONNXRUNTIME}: pip install '{package}~={ONNXRUNTIME}.0'"
    ok = fits and "CPUExecutionProvider" in providers
    findings.append(Finding("CPU", "ONNX Runtime", ok, detail, None if ok else advice))
    return release, package, providers


def _processor() -> tuple[str, int | None]:
    from helium_onnx.runtimes.providers import default_threads

    cores = default_threads()
    return conditions.conditions(cores).cpu, cores


def _memory() -> tuple[int | None, int | None]:
    """Total and available bytes, the smaller of the machine's and of what a container may use."""
    total, available = conditions.conditions(1).memory_bytes, conditions.available_memory()
    limit, used = _number("memory.max"), _number("memory.current")
    if total is None or available is None or limit is None or used is None:
        return total, available
    # What the kernel gives up when memory is short: files that were read, and not lately.
    return min(total, limit), min(available, max(0, limit - used + _inactive_files()))


def _inactive_files() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (_CGROUP / "memory.stat").read_text().splitlines():
            if line.startswith("inactive_file "):
                return int(line.split()[1])
    return 0


def _number(file: str) -> int | None:
    """Of a file of the control group (version 2); None where there is no limit, or no such file."""
    with contextlib.suppress(OSError, ValueError):
        return int((_CGROUP / file).read_text())
    return None


def _kernels(findings: list[Finding]) -> str | None:
    from helium_onnx import kernels

    name = kernels.instruction_set()
    if name == "generic":
        state = "built in plain C++ alone: bundles run on ONNX Runtime's, which are faster here"
        findings.append(Finding("CPU", "our kernels", None, state))
        return name
    if name is None and platform.machine().lower() not in kernels.VECTORIZED_FOR:
        state = "none with vector code for this processor: bundles run on ONNX Runtime's, which are faster here"
        findings.append(Finding("CPU", "our kernels", None, state))
        return None
    if name is not None:
        findings.append(Finding("CPU", "our kernels", True, f"built, in {name}"))
        return name
    state = "cannot be loaded here" if kernels.LIBRARY.exists() else "not built; quantized bundles run without, slower"
    remedy = "install a C++ compiler and run python -m helium_onnx.kernels.build"
    findings.append(Finding("CPU", "our kernels", None, state, remedy))
    return None
