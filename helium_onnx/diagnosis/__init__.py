"""What this machine can run, and what is missing: ``helium-onnx doctor``.

Whatever is broken here, the report comes: each part is asked by itself, and what it raises becomes a line of the
report.
"""

from __future__ import annotations

import dataclasses
import os
import platform

from helium_onnx._version import __version__
from helium_onnx.diagnosis import cuda, machine, other_providers
from helium_onnx.diagnosis import recipes as fits
from helium_onnx.diagnosis.report import DoctorReport, Finding, Machine, RecipeFit
from helium_onnx.errors import HeliumOnnxError
from helium_onnx.runtimes.cuda_probe import CudaReport


def doctor(path: str | os.PathLike[str] | None = None) -> DoctorReport:
    """Look at this machine; with ``path``, at whether that bundle runs on it."""
    findings: list[Finding] = []
    here = machine.look(findings)
    version, package, providers = machine.look_at_onnxruntime(findings)
    report = cuda.look(findings)
    other_providers.look(findings, providers)
    targets: list[fits.Target] = []
    try:
        targets = fits.shipped_targets() if path is None else [fits.bundle_target(path)]
    except HeliumOnnxError as error:
        said = error.what if error.found is None else f"{error.what} ({error.found})"
        findings.append(Finding("bundle", "bundle", False, said, error.remedy))
    except Exception as error:
        findings.append(Finding("bundle", "bundle", False, f"cannot be read: {machine.first_line(error)}"))
    return DoctorReport(
        versions={"helium-onnx": __version__, "Python": platform.python_version(), "onnxruntime": version},
        onnxruntime_package=package,
        providers=providers,
        machine=here,
        cuda=report,
        findings=tuple(findings),
        model=fits.PREVIEW_2B_NAME if path is None else os.fspath(path),
        bundle=None if path is None else os.fspath(path),
        context_length=_context_length(targets),
        recipes=tuple(_fits(targets, here, report, findings, providers)),
    )


def _context_length(targets: list[fits.Target]) -> int | None:
    """The model's; of a bundle whose graphs fix a shorter one, that."""
    if not targets:
        return None
    return targets[0].config.max_position_embeddings if targets[0].bundle is None else targets[0].longest_context


def _fits(
    targets: list[fits.Target], here: Machine, report: CudaReport, findings: list[Finding], providers: tuple[str, ...]
) -> list[RecipeFit]:
    """Each target in the place that its provider runs in."""
    blocked = {part: _first_obstacle(part, findings) for part in ("CPU", "CUDA")}
    places = {
        "cpu": fits.Place("memory", here.available_bytes, here.memory_bytes, blocked=blocked["CPU"]),
        "cuda": fits.device_place(cuda.usable(report), blocked["CUDA"] or blocked["CPU"]),
        **{row.name: other_providers.place(row, here, providers, blocked["CPU"]) for row in other_providers.rows()},
    }
    judged = []
    for target in targets:
        recipe = target.recipe
        try:
            place = places[recipe.execution_provider]
            if target.bundle is not None and (obstacle := other_providers.package_obstacle(target.bundle)) is not None:
                place = dataclasses.replace(place, blocked=obstacle)
            judged.append(fits.fit(target, place))
        except Exception as error:
            why = f"cannot be judged: {machine.first_line(error)}"
            judged.append(RecipeFit(recipe.name, recipe.execution_provider, False, None, None, None, why))
    return judged


def _first_obstacle(part: str, findings: list[Finding]) -> str | None:
    """What keeps everything of this part from running; a single device that is too old does not."""
    names = {"CPU": ("ONNX Runtime",), "CUDA": ("driver", "ONNX Runtime", "libraries")}[part]
    failed = [f for f in findings if f.part == part and f.ok is False and f.name in names]
    return f"{failed[0].name}: see above" if failed else None
