"""Export: a checkpoint and a recipe go in, a bundle comes out.

Trace (trace.py), passes (pipelines.py lists them), weights (weights.py streams them), bundle (../bundle.py).
The package is not named ``export``, because ``helium_onnx.export`` is the function.
"""

from __future__ import annotations

import os
import threading
from importlib.metadata import version

from helium_onnx import contract
from helium_onnx._version import __version__
from helium_onnx.adapters.given import GivenAdapters, checked_mode, given_adapters
from helium_onnx.adapters.labels import labels_config
from helium_onnx.adapters.merging import merged
from helium_onnx.bundle import Bundle, BundleWriter, sha256
from helium_onnx.checkpoint import Checkpoint
from helium_onnx.errors import UsageError
from helium_onnx.exporter.calibration import Calibration, load_calibration
from helium_onnx.exporter.client_files import write_client_files
from helium_onnx.exporter.context import check_context, with_context
from helium_onnx.exporter.graphs import build_graphs, graph_record, save_graph
from helium_onnx.exporter.key_value_scales import key_value_scales
from helium_onnx.exporter.pipelines import check_task
from helium_onnx.exporter.quantization import (
    allocated,
    check_calibration,
    make_quantizer,
    matrices,
    needs_calibration,
    quantization_record,
)
from helium_onnx.exporter.quantize.allocation import Allocation, Budget
from helium_onnx.exporter.runtime_adapters import RuntimeAdapters, check_recipe
from helium_onnx.exporter.trace import trace
from helium_onnx.exporter.weights import WeightPlan
from helium_onnx.hub import resolve_checkpoint
from helium_onnx.manifest import FORMAT_VERSION, FileRecord, Manifest
from helium_onnx.progress import ProgressCallback, ProgressEvent, silent
from helium_onnx.recipe import Recipe, load_recipe
from helium_onnx.tasks import AUTO, Task, checked_task
from helium_onnx.tokenizer import Tokenizer

#: Graphs, tokenizer and manifest: what a bundle takes beside its weights, with room to spare.
_SMALL_FILES_BYTES = 32 << 20
_TOOLS = ("torch", "onnx", "onnx-ir", "onnxscript", "safetensors", "numpy")


def export(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    task: str = AUTO,
    recipe: str | os.PathLike[str] | Recipe = "cpu-int4",
    calibration: str | os.PathLike[str] | None = None,
    budget: str | None = None,
    max_kl: float | None = None,
    context_length: int | None = None,
    force: bool = False,
    revision: str | None = None,
    offline: bool = False,
    adapter: GivenAdapters = None,
    adapter_mode: str = "merge",
    progress: ProgressCallback | None = None,
) -> Bundle:
    """See :func:`helium_onnx.export`."""
    report = progress or silent
    chosen = with_context(load_recipe(recipe), context_length)
    wanted = checked_task(task)
    goal = Budget.parse(budget, max_kl)
    check_calibration(chosen, calibration, goal)
    BundleWriter(out, force=force, expected_bytes=0).check_target()  # before a minute's work, and again with the lock
    report(ProgressEvent("read", os.fspath(checkpoint)))
    source = Checkpoint.open(resolve_checkpoint(checkpoint, revision=revision, offline=offline))
    given, beside = given_adapters(adapter), None
    if checked_mode(adapter_mode) == "merge":
        folders = [folder for _, folder in given]
        source = merged(source, folders).as_task(wanted, labels_config(folders))
    else:
        source = source.as_task(wanted)
    config = source.config
    if config.task != "text-generation":
        check_options(config.task, goal=goal, adapter_mode=adapter_mode)
    check_context(context_length, chosen, config)
    check_task(config, chosen)
    source.check_tensors(config)
    if adapter_mode == "runtime":
        check_recipe(chosen)
        beside = RuntimeAdapters(source, given)
    chosen.check_matrices(matrices(config))
    tokenizer = read_tokenizer(source)
    text: Calibration | None = None
    if needs_calibration(chosen) or calibration is not None or goal is not None:
        text = load_calibration(calibration, tokenizer, config, tokens=chosen.quantization.calibration_tokens)
    scales = None
    if text is not None and chosen.precision.key_value_cache == "int8":
        scales = key_value_scales(source, text.windows, report)

    allocation: Allocation | None = None
    if text is not None and goal is not None:
        chosen, allocation = allocated(source, chosen, goal, text, report)

    report(ProgressEvent("trace", f"{config.num_hidden_layers} layers, {config.num_parameters / 1e6:.1f} M parameters"))
    plan = WeightPlan()
    graphs = build_graphs(trace(config), plan, config, chosen, scales, adaptable=beside is not None)
    with BundleWriter(out, force=force, expected_bytes=plan.total_bytes + _SMALL_FILES_BYTES) as writer:
        digests = _Digests(source)
        (writer.folder / "onnx").mkdir()
        for name, model in graphs.items():
            save_graph(model, writer.folder / contract.graph_file(name))
        write_client_files(writer.folder, source, chosen)
        plan.write(writer.folder / contract.WEIGHTS_FILE, source, make_quantizer(source, chosen, text), report)
        report(ProgressEvent("finish", "digests and flush to disk"))
        adapters = {} if beside is None else beside.write(writer.folder, digests.records())
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            helium_onnx=__version__,
            task=config.task,
            licence=source.licence,
            recipe=chosen.to_dict(),
            quantization=quantization_record(chosen, text, allocation),
            model_config=dict(config.to_dict()),
            graphs={name: graph_record(model, name, config, chosen) for name, model in graphs.items()},
            tensors=plan.records(),
            source=digests.records(),
            tools={name: version(name) for name in _TOOLS},
            files=(),
            adapters=adapters,
        )
        return writer.commit(manifest)


def check_options(task: Task, *, goal: Budget | None, adapter_mode: str) -> None:
    """Raise UsageError for what is built for text generation alone."""
    if goal is not None:
        raise UsageError(
            "a budget is for text generation",
            found=f"the task {task}",
            expected="a model whose loss is that of the next token: matrices are chosen by it",
            remedy="choose a recipe by its bits: cpu-int8, cpu-int4",
        )
    if adapter_mode == "runtime":
        raise UsageError(
            "adapters that are chosen per request are for text generation",
            found=f"the task {task}",
            remedy="merge the adapter: --adapter-mode merge",
        )


def read_tokenizer(source: Checkpoint) -> Tokenizer:
    """The checkpoint's tokenizer. Raises TokenizerError unless it has exactly the model's vocabulary."""
    config = source.config
    return Tokenizer.from_folder(
        source.folder,
        vocab_size=config.vocab_size,
        bos_token_id=config.bos_token_id,
        eos_token_ids=config.eos_token_ids,
    )


class _Digests:
    """SHA-256 of the checkpoint's files, computed beside the quantization: hashing lets other threads run."""

    def __init__(self, source: Checkpoint) -> None:
        self._source = source
        self._records: list[FileRecord] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="helium-onnx-digests", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for path in self._source.source_files():
                record = FileRecord(self._source.source_name(path), path.stat().st_size, sha256(path))
                self._records.append(record)
        except BaseException as error:
            self._error = error

    def records(self) -> tuple[FileRecord, ...]:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return tuple(self._records)
