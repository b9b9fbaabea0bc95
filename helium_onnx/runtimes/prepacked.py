"""The cache of prepacked weights: what makes the second load of a large bundle fast and small.

ONNX Runtime's CPU kernels reorder constant weights when a session is made: seconds of work, and a private copy in
every session of every process. Saved once and loaded again, the reordered weights are pages of a file that all of
them share. Their layout belongs to one CPU family and one version of ONNX Runtime, so the cache is made on the target
machine, is keyed by both, and is never part of a bundle.

    ~/.cache/helium-onnx/prepacked/<bundle>-<cpu>-<onnxruntime>/
        prefill.onnx  decode.onnx  weights.data  cache.json  sources.json
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import onnxruntime as ort

from helium_onnx.bundle import Bundle, sha256
from helium_onnx.contract import WEIGHTS_FILE
from helium_onnx.errors import IntegrityError, TargetLockedError
from helium_onnx.locking import exclusive_lock
from helium_onnx.manifest import TensorRecord
from helium_onnx.progress import ProgressCallback, ProgressEvent
from helium_onnx.runtimes.checked_files import CheckedFiles, FileStamp, default_cache_dir
from helium_onnx.runtimes.initializer_order import initializers_last
from helium_onnx.runtimes.session import Phase

#: Below this a session packs its weights faster than a user notices, and a cache would only litter the disk.
PAYS_FROM_BYTES = 64 << 20
_WEIGHTS = "weights.data"
_ALIGNMENT = 64  # bytes: a cache line, and a register of AVX-512
_PHASES: tuple[Phase, ...] = ("prefill", "decode")


def cpu_key() -> str:
    """Twelve digits that change with the processor's family and instruction sets, which decide the kernels' layouts."""
    facts = [platform.machine(), platform.system()]
    with contextlib.suppress(OSError):
        wanted = ("vendor_id", "cpu family", "model\t", "flags", "Features", "CPU implementer", "CPU part")
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts += sorted({line for line in lines if line.startswith(wanted)})
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


class PrepackedCache:
    """The cache of one bundle on this machine."""

    def __init__(self, bundle: Bundle, cache_dir: Path | None = None) -> None:
        self.bundle = bundle
        self._cache_dir = cache_dir

    # Asked for only where a cache is wanted: a user without a home folder can do without one.

    @functools.cached_property
    def root(self) -> Path:
        return (self._cache_dir or default_cache_dir()) / "prepacked"

    @functools.cached_property
    def folder(self) -> Path:
        return self.root / f"{self.bundle.digest[:16]}-{cpu_key()}-{ort.__version__}"

    @functools.cached_property
    def _checked(self) -> CheckedFiles:
        return CheckedFiles(self.bundle, self.folder / "sources.json")

    def graph_path(self, phase: Phase) -> Path:
        return self.folder / f"{phase}.onnx"

    def pays(self) -> bool:
        """Whether the bundle is large enough for a cache to be worth its disk space."""
        return (self.bundle.path / WEIGHTS_FILE).stat().st_size >= PAYS_FROM_BYTES

    def prepare(self, options: Callable[[], ort.SessionOptions], progress: ProgressCallback) -> bool:
        """Make sure that the cache is there and sound; False where it cannot be had (the caller then does without).

        A cache that is incomplete or changed is built anew. Raises IntegrityError if the bundle's files are not what
        its manifest says: they are hashed when they are seen first, and again when their size, time or inode changes.
        """
        checked = False
        try:
            sound = self.is_sound()
            if not (sound and self._checked.known()):
                progress(ProgressEvent("cache", "checking the bundle's digests"))
                self.bundle.check_digests()
                checked = True
                if sound:
                    with contextlib.suppress(OSError):  # a cache that others may only read: hashed again each time
                        self._checked.remember()
            if sound:
                return True
            self.root.mkdir(parents=True, exist_ok=True)
            with exclusive_lock(self.folder):
                if not self.is_sound():  # another process may have built it meanwhile
                    self._build(options, progress)
        except TargetLockedError:
            progress(ProgressEvent("cache", "another process is building it; this one does without"))
            return False
        except IntegrityError:
            raise
        except Exception as error:  # ONNX Runtime's or the disk's: a cache is never worth a failure
            if not checked:
                self.bundle.check_digests()
            text = str(error) or type(error).__name__  # a MemoryError says nothing
            progress(ProgressEvent("cache", f"not built: {text.splitlines()[0][:160]}"))
            return False
        return True

    def is_sound(self) -> bool:
        """Whether every file is the one that was written.

        Sizes, times and inodes are compared; graph files, which are small, are hashed too. ``check`` hashes all.
        """
        try:
            record = json.loads((self.folder / "cache.json").read_text(encoding="utf-8"))
            graphs_whole = all(sha256(self.graph_path(p)) == record["sha256"][f"{p}.onnx"] for p in _PHASES)
            weights_whole = FileStamp.of(self.folder / _WEIGHTS) == FileStamp(**record["weights"])
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return graphs_whole and weights_whole

    def check(self) -> bool:
        """Whether the weights' content is what was written: reads the whole file."""
        if not self.is_sound():
            return False
        record = json.loads((self.folder / "cache.json").read_text(encoding="utf-8"))
        return bool(sha256(self.folder / _WEIGHTS) == record["sha256"][_WEIGHTS])

    def _build(self, options: Callable[[], ort.SessionOptions], progress: ProgressCallback) -> None:
        needed = int(
            6 * (self.bundle.path / WEIGHTS_FILE).stat().st_size
        )  # packed weights, for a moment in two copies, and the converted ones
        self._remove_stale()  # first: what killed builds left may be what fills the disk
        if (free := shutil.disk_usage(self.root).free) < needed:
            raise OSError(f"{needed / 1e9:.1f} GB of disk needed in {self.root}, {free / 1e9:.1f} GB free")
        with self._partial() as partial:
            for phase in _PHASES:
                progress(ProgressEvent("cache", f"prepacking the weights for this machine ({phase}), once"))
                self._save(phase, partial, options)
            files = [*(f"{phase}.onnx" for phase in _PHASES), _WEIGHTS]
            record = {
                "sha256": {name: sha256(partial / name) for name in files},
                "weights": vars(FileStamp.of(partial / _WEIGHTS)),
            }
            (partial / "cache.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            if self.folder.exists():
                shutil.rmtree(self.folder)
            partial.rename(self.folder)
        self._checked.remember()

    def _save(self, phase: Phase, partial: Path, options_of: Callable[[], ort.SessionOptions]) -> None:
        """Let ONNX Runtime write one optimized graph with its packed weights; both graphs' weights are one file."""
        with tempfile.TemporaryDirectory(dir=partial) as name:
            scratch, options = Path(name), options_of()
            options.optimized_model_filepath = str(scratch / f"{phase}.onnx")
            options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", _WEIGHTS)
            options.add_session_config_entry("session.prepack.enable_parallel", "1")
            graph = self._without_conversions(phase, scratch, options_of)
            # Scales, however few, go behind their matrix into the file: as float32 they bring its end into line again.
            options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "64")
            # The graph comes as bytes, so that ONNX Runtime must be told where its weights are.
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.parent))
            model = initializers_last(graph.read_bytes(), self._order())
            ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            if not (scratch / _WEIGHTS).exists():
                raise OSError("ONNX Runtime wrote no prepacked weights")
            _check_alignment(scratch / f"{phase}.onnx")
            (scratch / f"{phase}.onnx").rename(partial / f"{phase}.onnx")
            if not (partial / _WEIGHTS).exists():
                (scratch / _WEIGHTS).rename(partial / _WEIGHTS)
            elif not _equal(scratch / _WEIGHTS, partial / _WEIGHTS):
                raise OSError("the graphs' prepacked weights differ")

    def _order(self) -> list[str]:
        """Stored tensors in the order of the weights file, scales behind their matrix also where they were converted.

        ONNX Runtime leaves what it converts in another order in each graph. What is odd in size goes last, or it would
        misplace all that is written behind it (see _check_alignment).
        """
        named = [
            (f"{t.name}.Cast.output", 2 * t.nbytes) if _in_float16(t) else (t.name, t.nbytes)
            for t in self.bundle.manifest.tensors
        ]
        return [name for name, size in sorted(named, key=lambda pair: pair[1] % _ALIGNMENT != 0)]

    def _without_conversions(self, phase: Phase, scratch: Path, options_of: Callable[[], ort.SessionOptions]) -> Path:
        """The graph, or where it converts scales a copy in which ONNX Runtime has done so, with weights of its own."""
        graph = self.bundle.graph_path(phase)
        if not any(map(_in_float16, self.bundle.manifest.tensors)):
            return graph
        options = options_of()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(scratch / "converted.onnx")
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "converted.data")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "64")
        ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return scratch / "converted.onnx"

    @contextlib.contextmanager
    def _partial(self) -> Iterator[Path]:
        partial = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}.partial-", dir=self.root))
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _remove_stale(self) -> None:
        """Remove this bundle's caches for other versions of ONNX Runtime, and what killed builds left behind."""
        prefix = self.folder.name.removesuffix(ort.__version__)
        for path in self.root.iterdir():
            if path.name.startswith((prefix, f".{prefix}")) and path.is_dir() and path != self.folder:
                shutil.rmtree(path, ignore_errors=True)


def _in_float16(tensor: TensorRecord) -> bool:
    """Whether the graphs convert it: scales in float16 become float32 when a session is made."""
    return tensor.dtype == "float16" and tensor.name.endswith(".scales")


def _check_alignment(graph: Path) -> None:
    """Raise OSError unless all packed weights of a graph that ONNX Runtime saved begin at a multiple of 64 bytes.

    Kernels pack relative to the next such address inside of their buffer. ONNX Runtime 1.31.1 writes what they packed
    behind whatever came before, and maps it: at any other address they read it shifted, and the model speaks nonsense,
    without an error (measured: int4 at accuracy_level 4, AVX-512).
    """
    # external_data's value for a key "prepacked_<i>": kernel+hash|offset;length;checksum as text within the protobuf.
    offsets = [int(offset) for offset in re.findall(rb"\|(\d+);\d+;", graph.read_bytes())]
    if not offsets or any(offset % _ALIGNMENT for offset in offsets):
        raise OSError(f"ONNX Runtime saved no packed weights for {graph.name} that lie at multiples of {_ALIGNMENT}")


def _equal(first: Path, second: Path) -> bool:
    if first.stat().st_size != second.stat().st_size:
        return False
    with first.open("rb") as one, second.open("rb") as two:
        while chunk := one.read(8 << 20):
            if chunk != two.read(8 << 20):
                return False
    return True
