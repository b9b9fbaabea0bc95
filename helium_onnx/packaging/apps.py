"""The targets ``desktop``, ``android`` and ``ios``: a folder that the platform's own tools build, the bundle in it.

Unlike other packages the folder is no bundle itself: it holds one. helium-package.json says what it was made for.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from helium_onnx import atomic
from helium_onnx._version import __version__
from helium_onnx.bundle import Bundle, BundleWriter
from helium_onnx.contract import WEIGHTS_FILE
from helium_onnx.errors import ExportError, TargetExistsError
from helium_onnx.locking import exclusive_lock
from helium_onnx.packaging import app_sources
from helium_onnx.packaging.copying import copy_files, small_files, weights_bytes
from helium_onnx.progress import ProgressCallback, ProgressEvent

RECORD = "helium-package.json"
MODEL = "model"
#: Sources and graphs, with room to spare.
_SMALL_BYTES = 16 << 20


@dataclass(frozen=True)
class App:
    """A platform. ``sources`` are folders of app_sources and where they lie in the package; ``graphs`` those that the
    library runs there, as far as a bundle has them; ``build`` says how to build it, for PACKAGE.md and the terminal.
    """

    name: str
    summary: str
    sources: tuple[tuple[str, str], ...]
    graphs: tuple[str, ...]
    build: str
    form: str = "a bundle for CPUs, as cpu-int4 or cpu-fp32"
    recipes: tuple[str, ...] = ("cpu-int4", "cpu-fp32")

    def refusal(self, bundle: Bundle) -> str | None:
        """What is wrong with a bundle for this platform; None where its graphs run."""
        if bundle.task != "text-generation":
            return f"it is for {bundle.task}"
        made_for = bundle.manifest.recipe.get("execution_provider", "cpu")
        operators = bundle.manifest.recipe["graph"]["operators"]
        if made_for != "cpu" or operators != "onnxruntime":
            return f"its graphs are for {made_for}, of {operators} operators"
        if bundle.manifest.adapters:
            return "its graphs take LoRA adapters, which libhelium_onnx does not give them"
        return None


DESKTOP = App(
    name="desktop",
    summary="a CMake project: libhelium_onnx, a command-line app, the bundle",
    sources=(("c", ""), ("kernels", "kernels")),
    graphs=("prefill", "decode", "native_prefill", "native_decode"),
    build="""cmake -S . -B build -DHELIUM_ONNXRUNTIME_INCLUDE_DIR=/path/to/onnxruntime/include
cmake --build build
HELIUM_ONNXRUNTIME=/path/to/libonnxruntime.so build/samples/helium model "Once upon a time\"""",
)
ANDROID = App(
    name="android",
    summary="a Gradle project: the library for Java and Kotlin, a sample app, the bundle",
    sources=(("android", ""), ("c", "c"), ("kernels", "c/kernels")),
    graphs=("prefill", "decode"),
    build="""gradle :app:installDebug""",
)
IOS = App(
    name="ios",
    summary="a Swift package, a sample app, the bundle",
    sources=(
        ("ios", ""),
        ("c/src", "Sources/CHeliumOnnx/src"),
        ("c/include", "Sources/CHeliumOnnx/include"),
    ),
    graphs=("prefill", "decode"),
    build="""swift build          # on a Mac; or add this folder to an Xcode project as a local package""",
)
APPS = {app.name: app for app in (DESKTOP, ANDROID, IOS)}

_PAGE = """\
# Helium for {name}

{summary}.
Made by helium-onnx {version}; README.md says how it is built and used.

```
{build}
```

`model/` is the bundle: {size:.1f} MB, recipe {recipe}, manifest_sha256
{digest}.
Deliver it beside the app, or put the folder on a server and let the app fetch it when it first starts, file by file
after `files` in `helium.json` (path, size, SHA-256).

The weights stay under their own licence: that of the checkpoint, which `model/LICENSE` holds where it has one.
"""


def package_app(app: App, bundle: Bundle, dest: Path, *, force: bool, progress: ProgressCallback) -> Bundle:
    """Write the package to ``dest``, whole or not at all, and return the bundle in it.

    Raises:
        TargetExistsError: ``dest`` is there, and ``force`` is not given or it is no package of this kind.
        TargetLockedError: another process is writing it.
        ResourceError: the disk has too little room.
        ExportError: the folder cannot be written.
    """
    target = Path(os.path.abspath(dest))  # noqa: PTH100  resolve() would follow a link and replace its goal
    needed = weights_bytes(bundle) + _SMALL_BYTES
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(target):
            atomic.recover(target)
            check_target(target, force)
            free = atomic.free_bytes(target.parent)
            if free is not None and free < needed:
                raise atomic.too_little_room(target, needed, free)
            try:
                folder = atomic.make_partial(target)
                for name, place in app.sources:
                    progress(ProgressEvent("copy", name))
                    app_sources.copy(name, folder / place)
                model = _write_model(app, bundle, folder / MODEL, progress)
                record = {
                    "target": app.name,
                    "bundle": bundle.digest,
                    "model": model.digest,
                    "helium_onnx": __version__,
                }
                (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
                (folder / "PACKAGE.md").write_text(_page(app, model), encoding="utf-8")
                progress(ProgressEvent("finish", "flush to disk"))
                atomic.install(folder, target)
            finally:
                atomic.recover(target)
    except OSError as error:
        told = atomic.export_error(error, target, needed)
        raise told or ExportError(f"{target} cannot be written.", found=error) from error
    return Bundle.open(target / MODEL)


def check_target(target: Path, force: bool) -> None:
    """Refuse what must not be replaced. Raises TargetExistsError."""
    if not os.path.lexists(target):
        return
    is_folder = target.is_dir() and not target.is_symlink()
    if not is_folder or not ((target / RECORD).is_file() or not any(target.iterdir())):
        raise TargetExistsError(
            f"{target} exists and is no package for an app.",
            expected="a path that is free (with --force: or a package or an empty folder)",
            remedy="choose another target, or move this one away yourself",
        )
    if not force:
        raise TargetExistsError(f"{target} exists.", remedy="--force replaces it; or choose another target")


def _write_model(app: App, bundle: Bundle, folder: Path, progress: ProgressCallback) -> Bundle:
    graphs = {name: graph for name, graph in bundle.manifest.graphs.items() if name in app.graphs}
    with BundleWriter(folder, force=False, expected_bytes=0) as writer:
        files = [*(graph.file for graph in graphs.values()), *small_files(bundle), WEIGHTS_FILE]
        copy_files(bundle, files, writer.folder, progress)
        manifest = dataclasses.replace(
            bundle.manifest,
            helium_onnx=__version__,
            graphs=graphs,
            package={"target": app.name, "bundle": bundle.digest},
        )
        return writer.commit(manifest)


def _page(app: App, model: Bundle) -> str:
    return _PAGE.format(
        name=app.name,
        summary=app.summary[0].upper() + app.summary[1:],
        version=__version__,
        build=app.build,
        size=model.total_bytes / 1e6,
        recipe=model.manifest.recipe["name"],
        digest=model.digest,
    )
