"""Package a bundle for one place that runs it: what that place needs alone, in the form that it takes.

A package is a bundle again: a folder with a helium.json that is true to it, written whole or not at all. Each target is
a row of TARGETS; those of APPS are projects of an app, with such a bundle in them.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from helium_onnx._version import __version__
from helium_onnx.bundle import Bundle, BundleWriter
from helium_onnx.errors import BundleError, ProviderError, UsageError
from helium_onnx.packaging.android_qnn import ANDROID_QNN
from helium_onnx.packaging.apps import APPS, App, package_app
from helium_onnx.packaging.apps import check_target as check_app_target
from helium_onnx.packaging.optimum import OPTIMUM
from helium_onnx.packaging.target import Options, Target
from helium_onnx.packaging.web import WEB
from helium_onnx.progress import ProgressCallback, ProgressEvent, silent

TARGETS: dict[str, Target] = {row.name: row for row in (ANDROID_QNN, WEB, OPTIMUM)}

#: The options as the command line has them, for errors.
_FLAGS = {"soc": "--soc", "share_weights": "--unshared"}


def package(
    path: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    target: str,
    soc: str | None = None,
    share_weights: bool = True,
    force: bool = False,
    progress: ProgressCallback | None = None,
) -> Bundle:
    """See :func:`helium_onnx.package`."""
    report = progress or silent
    row, options = _target(target), Options(soc, share_weights)
    _check_options(row, options)
    _check_apart(Path(path), Path(dest))
    # Whether it may be written there is asked before the work, and again with the lock.
    if isinstance(row, App):
        check_app_target(Path(dest), force)
    else:
        BundleWriter(dest, force=force, expected_bytes=0).check_target()
    bundle = Bundle.open(path)
    _check_serves(row, bundle)
    if isinstance(row, Target):
        row.check(bundle, options)

    def step(name: str, done: int, total: int) -> None:
        report(ProgressEvent("verify", name, done, total))

    bundle.check_digests(step)  # what is damaged would be compiled or copied without a word
    if isinstance(row, App):
        return package_app(row, bundle, Path(dest), force=force, progress=report)
    with BundleWriter(dest, force=force, expected_bytes=row.needed_bytes(bundle, options)) as writer:
        contents = row.make(bundle, writer.folder, options, report)
        report(ProgressEvent("finish", "digests and flush to disk"))
        manifest = dataclasses.replace(
            bundle.manifest,
            helium_onnx=__version__,
            graphs=dict(contents.graphs),
            tensors=contents.tensors,
            tools={**bundle.manifest.tools, **contents.tools},
            package={"target": row.name, "bundle": bundle.digest, **contents.record},
            adapters={},  # no target takes them: a package has the base model alone
        )
        return writer.commit(manifest)


def _target(name: str) -> Target | App:
    rows: dict[str, Target | App] = {**TARGETS, **APPS}
    if name not in rows:
        raise UsageError("there is no such target", found=repr(name), expected=f"one of {', '.join(rows)}")
    return rows[name]


def _check_options(row: Target | App, options: Options) -> None:
    """Raise UsageError for an option that means nothing to the target."""
    for option in dataclasses.fields(options):
        takes = isinstance(row, Target) and option.name in row.options
        if not takes and getattr(options, option.name) != option.default:
            flag = _FLAGS[option.name]
            having = ", ".join(other.name for other in TARGETS.values() if option.name in other.options)
            raise UsageError(
                f"the target {row.name} has no {flag}",
                found=f"{flag} {options.soc}" if option.name == "soc" else flag,
                remedy=f"leave it out: it is for {having}",
            )


def _check_apart(source: Path, dest: Path) -> None:
    """Raise UsageError where one folder lies in the other: the package would be part of the bundle, or replace it."""
    here, there = source.resolve(), dest.resolve()
    if here == there or here in there.parents or there in here.parents:
        where = "the bundle itself" if here == there else "inside the bundle" if here in there.parents else "around it"
        raise UsageError(
            "the package cannot be written there",
            found=f"{dest}, {where}",
            expected="a folder apart from the bundle",
            remedy=f"choose another, as {here.parent / (here.name + '-package')}",
        )


def _check_serves(row: Target | App, bundle: Bundle) -> None:
    """Raise unless the bundle has what the target takes."""
    if made_for := bundle.manifest.package.get("target"):
        raise BundleError(
            f"{bundle.path} is a package already",
            found=f"one for {made_for}",
            expected="a bundle as helium-onnx export writes it",
            remedy="package the bundle that it was made from",
        )
    if (refusal := row.refusal(bundle)) is not None:
        recipe = bundle.manifest.recipe.get("name", "without a name")
        raise ProviderError(
            f"{bundle.path} cannot be packaged for {row.name}",
            found=f"recipe {recipe}: {refusal}",
            expected=row.form,
            remedy=" or ".join(f"helium-onnx export CHECKPOINT OUT --recipe {name}" for name in row.recipes),
        )
