"""helium-onnx: a checkpoint and a recipe go in, a bundle comes out, and a session runs the bundle.

    import helium_onnx
    helium_onnx.export("helium-1-preview-2b/", "out/", recipe="cpu-int4")
    model = helium_onnx.load("out/")
    for piece in model.stream("Plants create energy", max_new_tokens=50):
        print(piece, end="")

Importing the package imports neither torch nor onnxruntime; each verb imports what it needs.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, cast, overload

from helium_onnx import errors
from helium_onnx._version import __version__
from helium_onnx.errors import HeliumOnnxError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helium_onnx.adapters.given import GivenAdapters
    from helium_onnx.batching.report import BatchReport
    from helium_onnx.benchmark.report import BenchReport
    from helium_onnx.bundle import Bundle
    from helium_onnx.diagnosis.report import DoctorReport
    from helium_onnx.encoding.classification import Label, TextClassifier
    from helium_onnx.encoding.embedding import EmbeddingModel
    from helium_onnx.encoding.tagging import Entity, TokenClassifier
    from helium_onnx.evaluation.gates import Gates
    from helium_onnx.evaluation.golden import GoldenReport
    from helium_onnx.evaluation.overflow import OverflowReport
    from helium_onnx.evaluation.parity import ParityReport
    from helium_onnx.evaluation.report import FidelityComparison, FidelityReport
    from helium_onnx.evaluation.task_parity import TaskParityReport
    from helium_onnx.generation.model import LanguageModel
    from helium_onnx.generation.result import GenerationResult
    from helium_onnx.progress import ProgressCallback, ProgressEvent
    from helium_onnx.recipe import Recipe
    from helium_onnx.tasks import Task
    from helium_onnx.verification import Check

__all__ = [
    "BatchReport",
    "BenchReport",
    "Bundle",
    "Check",
    "DoctorReport",
    "EmbeddingModel",
    "Entity",
    "FidelityComparison",
    "FidelityReport",
    "Gates",
    "GenerationResult",
    "GoldenReport",
    "HeliumOnnxError",
    "Label",
    "LanguageModel",
    "OverflowReport",
    "ParityReport",
    "ProgressEvent",
    "Recipe",
    "TaskParityReport",
    "TextClassifier",
    "TokenClassifier",
    "__version__",
    "batch",
    "bench",
    "compare",
    "convert_adapter",
    "doctor",
    "errors",
    "export",
    "inspect",
    "list_recipes",
    "load",
    "overflow",
    "package",
    "validate",
    "verify",
]


#: Public types and where they are made; imported when first asked for.
_TYPES = {
    "BatchReport": "helium_onnx.batching.report",
    "BenchReport": "helium_onnx.benchmark.report",
    "Bundle": "helium_onnx.bundle",
    "Check": "helium_onnx.verification",
    "DoctorReport": "helium_onnx.diagnosis.report",
    "EmbeddingModel": "helium_onnx.encoding.embedding",
    "Entity": "helium_onnx.encoding.tagging",
    "FidelityComparison": "helium_onnx.evaluation.report",
    "FidelityReport": "helium_onnx.evaluation.report",
    "Gates": "helium_onnx.evaluation.gates",
    "GenerationResult": "helium_onnx.generation.result",
    "GoldenReport": "helium_onnx.evaluation.golden",
    "Label": "helium_onnx.encoding.classification",
    "LanguageModel": "helium_onnx.generation.model",
    "OverflowReport": "helium_onnx.evaluation.overflow",
    "ParityReport": "helium_onnx.evaluation.parity",
    "ProgressEvent": "helium_onnx.progress",
    "Recipe": "helium_onnx.recipe",
    "TaskParityReport": "helium_onnx.evaluation.task_parity",
    "TextClassifier": "helium_onnx.encoding.classification",
    "TokenClassifier": "helium_onnx.encoding.tagging",
}


class _LoadOptions(TypedDict, total=False):
    """Options of ``load`` for tasks without generation."""

    provider: str
    context_length: int | None
    threads: int | None
    kernels: Literal["auto", "native", "onnxruntime"]
    spin: bool
    cache_dir: str | os.PathLike[str] | None
    progress: ProgressCallback | None


def __getattr__(name: str) -> Any:
    if name in _TYPES:
        return getattr(importlib.import_module(_TYPES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def export(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    task: str = "auto",
    recipe: str | os.PathLike[str] | Recipe = "cpu-int4",
    calibration: str | os.PathLike[str] | None = None,
    budget: str | None = None,
    max_kl: float | None = None,
    context_length: int | None = None,
    force: bool = False,
    revision: str | None = None,
    offline: bool = False,
    adapter: GivenAdapters = None,
    adapter_mode: Literal["merge", "runtime"] = "merge",
    progress: ProgressCallback | None = None,
) -> Bundle:
    """Turn a Helium checkpoint into a bundle at ``out``. Needs ``helium-onnx[export]``.

    ``checkpoint`` is a local folder or a Hub id (``kyutai/helium-1-preview-2b``, at ``revision``; ``offline`` uses
    the Hub's cache alone). ``recipe`` is a shipped recipe's name or the path of one's own TOML file. ``out`` must not
    exist, unless ``force`` replaces a bundle there. ``progress`` gets a ``ProgressEvent`` for each step.

    ``task`` is what the bundle computes: ``text-generation``, ``feature-extraction``, ``text-classification``,
    ``token-classification``, or ``auto`` for that of the checkpoint's class (``architectures`` in its config.json).

    ``calibration`` is a file of JSON Lines (``{"text": ...}``) like what the model will see, for recipes that weigh
    errors by activations (GPTQ; k-quant, if given; an int8 key/value cache); a text in six languages is shipped.
    ``budget`` (``"1.2GB"`` for the bundle, or ``"4.8bits"`` a weight) or ``max_kl`` (nats a token, estimated) lets the
    exporter choose 4 or 8 bits and a block size for each matrix, by what each costs; the manifest keeps the choice.
    ``context_length`` is that of graphs with fixed shapes, in place of the recipe's (``graph.context``).
    ``adapter``: the folder of a LoRA adapter as peft saves it, or several, merged into the weights in their order. With
    ``adapter_mode`` ``runtime`` they stand beside the weights, and each request chooses one or none by its name: the
    folder's, or the key where ``adapter`` is a mapping of names to folders (docs/lora.md).

    The bundle is complete or absent, whatever happens; equal inputs give equal bytes. Memory stays near 0.5 GB for a
    2 B model: weights are streamed. Raises the errors of ``helium_onnx.errors``.
    """
    from helium_onnx.resources import EXPORT_BYTES, check_address_space

    check_address_space(EXPORT_BYTES, "export")
    with _needs("export", "torch", "onnx", "onnx_ir", "onnxscript", "safetensors", "huggingface_hub"):
        from helium_onnx import exporter
    return exporter.export(
        checkpoint,
        out,
        task=task,
        recipe=recipe,
        calibration=calibration,
        budget=budget,
        max_kl=max_kl,
        context_length=context_length,
        force=force,
        revision=revision,
        offline=offline,
        adapter=adapter,
        adapter_mode=adapter_mode,
        progress=progress,
    )


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
    """Package the bundle at ``path`` for one place that runs it; ``dest`` is the folder of the package.

    ``target`` is ``desktop``, ``android``, ``ios``, ``android-qnn``, ``web`` or ``optimum``. The first three are
    projects of an app over libhelium_onnx, which the platform's own tools build; the bundle is their folder ``model``,
    and is what is returned. ``android-qnn`` compiles prefill and decode for the NPU of a
    Snapdragon chip, ``soc`` (``75/57`` or ``SM8650``; an unknown one is an error that lists them); it needs
    onnxruntime-qnn, and a bundle of a recipe for QNN. The graphs share one copy of the weights, unless
    ``share_weights`` is False: the emulator on x86 can load no others. ``web`` takes what ``@helium-onnx/web`` loads in
    a browser, ``optimum`` what optimum's ORTModel classes load.

    ``dest`` must not exist, unless ``force`` replaces a package there, and lies apart from the bundle. ``progress``
    gets a ``ProgressEvent`` for each step. The package is a bundle, complete or absent, whatever happens. Raises the
    errors of ``helium_onnx.errors``: a ProviderError where the bundle's graphs are not what the target takes.
    """
    from helium_onnx import packaging

    return packaging.package(
        path, dest, target=target, soc=soc, share_weights=share_weights, force=force, progress=progress
    )


def convert_adapter(
    adapter: str | os.PathLike[str],
    path: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    force: bool = False,
) -> None:
    """Write the LoRA adapter in a folder of peft's as ONNX Runtime's file ``dest``, which ends in ``.onnx_adapter``.

    ``path`` is a bundle of the adapter's base model that was exported with ``adapter_mode="runtime"``; the file fits
    all such bundles of the same checkpoint, and ``generate(..., adapter=dest)`` takes it. ``dest`` must not exist,
    unless ``force`` replaces a file there. It is complete or absent, whatever happens. Needs no torch. Raises the
    errors of ``helium_onnx.errors``: an AdapterError where the adapter is another model's.
    """
    from helium_onnx.adapters import onnx_adapter
    from helium_onnx.adapters.bundle_adapters import BundleAdapters
    from helium_onnx.bundle import Bundle

    adapters = BundleAdapters(Bundle.open(path))
    target = onnx_adapter.checked_target(Path(dest).expanduser(), force=force)
    onnx_adapter.write_in_place(target, adapters.matrices(Path(adapter).expanduser()), adapters.base)


@overload
def load(
    path: str | os.PathLike[str],
    *,
    task: Literal["text-generation"] | None = None,
    provider: str = "auto",
    context_length: int | None = None,
    threads: int | None = None,
    kernels: Literal["auto", "native", "onnxruntime"] = "auto",
    spin: bool = True,
    cache: bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    prefix_cache: int = 512_000_000,
    draft: str | os.PathLike[str] | None = None,
    progress: ProgressCallback | None = None,
) -> LanguageModel: ...
@overload
def load(
    path: str | os.PathLike[str], *, task: Literal["feature-extraction"], **options: Unpack[_LoadOptions]
) -> EmbeddingModel: ...
@overload
def load(
    path: str | os.PathLike[str], *, task: Literal["text-classification"], **options: Unpack[_LoadOptions]
) -> TextClassifier: ...
@overload
def load(
    path: str | os.PathLike[str], *, task: Literal["token-classification"], **options: Unpack[_LoadOptions]
) -> TokenClassifier: ...
def load(
    path: str | os.PathLike[str],
    *,
    task: Task | None = None,
    provider: str = "auto",
    context_length: int | None = None,
    threads: int | None = None,
    kernels: Literal["auto", "native", "onnxruntime"] = "auto",
    spin: bool = True,
    cache: bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    prefix_cache: int = 512_000_000,
    draft: str | os.PathLike[str] | None = None,
    progress: ProgressCallback | None = None,
) -> LanguageModel | EmbeddingModel | TextClassifier | TokenClassifier:
    """Load a bundle: the model of its task. Needs no torch.

    That is a LanguageModel, which generates; an EmbeddingModel, with ``embed``; a TextClassifier, with ``classify``; or
    a TokenClassifier, with ``tag``. ``task`` says which one is expected, also to a type checker, which without it takes
    the bundle for one of text generation; another bundle is then an error.

    ``provider`` is the execution provider that the bundle was exported for, ``cpu`` or ``cuda`` (which needs
    ``helium-onnx[cuda]``), or ``auto`` for either; it is never another one than that.
    ``context_length`` bounds prompt and new tokens, and so the memory of keys and values (default: the model's).
    ``threads`` defaults to the physical cores that this process may use. ``cache`` keeps weights prepacked for this
    machine (default: where it pays, from 64 MB), under ``cache_dir`` (default: ``~/.cache/helium-onnx``).

    ``kernels``: ``native`` are those of this package, for quantized bundles on CPUs, ``onnxruntime`` those of ONNX
    Runtime (which alone use ``cache``); ``auto`` takes the native ones where bundle and machine have them. ``spin``:
    threads wait busily for their next piece of work; False is slower, and saves a battery.

    ``prefix_cache`` bounds, in bytes, the keys and values that are kept for later prompts which begin with the same
    tokens; 0 keeps none. ``draft`` is a second, faster bundle with the same tokenizer: it proposes tokens that this one
    verifies, several at a time. Both, and ``cache``, are for generation alone, and change nothing elsewhere.
    """
    from helium_onnx.bundle import Bundle
    from helium_onnx.progress import silent
    from helium_onnx.resources import check_address_space, load_bytes

    bundle = Bundle.open(path)
    if task is not None and bundle.task != task:
        raise errors.BundleError(
            f"{bundle.path} is for another task",
            found=bundle.task,
            expected=str(task),
            remedy=f"export the checkpoint anew: --task {task}",
        )
    drafting = None if draft is None else Bundle.open(draft)
    total_bytes = bundle.total_bytes + (0 if drafting is None else drafting.total_bytes)
    check_address_space(load_bytes(total_bytes), "load")
    from helium_onnx.loading import load_model, load_text_model

    if bundle.task != "text-generation":
        if drafting is not None:
            raise errors.UsageError("a draft is for text generation", found=f"the task {bundle.task}")
        model = load_text_model(
            bundle,
            provider=provider,
            context_length=context_length,
            threads=threads,
            kernels=kernels,
            spin=spin,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            progress=progress or silent,
        )
        return cast("EmbeddingModel | TextClassifier | TokenClassifier", model)
    return load_model(
        bundle,
        provider=provider,
        context_length=context_length,
        threads=threads,
        kernels=kernels,
        spin=spin,
        cache=cache,
        cache_dir=None if cache_dir is None else Path(cache_dir),
        prefix_cache=prefix_cache,
        draft=drafting,
        progress=progress or silent,
    )


def batch(
    bundle: str | os.PathLike[str],
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    task: str = "auto",
    field: str = "text",
    lines: bool = False,
    ordered: bool = True,
    resume: bool = False,
    force: bool = False,
    bad_rows: Literal["stop", "report"] = "stop",
    drop_text: bool = False,
    batch_tokens: int | None = None,
    provider: str = "auto",
    context_length: int | None = None,
    threads: int | None = None,
    kernels: Literal["auto", "native", "onnxruntime"] = "auto",
    cache: bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    ray: str | None = None,
    workers: int | None = None,
    progress: ProgressCallback | None = None,
    **options: Any,
) -> BatchReport:
    """Let a bundle work through a file of texts: JSON Lines in, JSON Lines out, each row once. Needs no torch.

    ``input`` has a JSON object a line, whose ``field`` is a text (or, with ``lines``, a text a line); blank lines are
    no rows, and ``-`` is stdin. An output row is the input row (``drop_text``: without its text) and what the bundle's
    ``task`` makes of it: ``generated_text``, ``finish_reason``, ``prompt_tokens`` and ``new_tokens``; ``embedding``;
    ``labels``; or ``entities``. ``options`` are the task's: those of ``generate`` but logprobs and speculation;
    ``pooling`` and ``normalize``; ``top_k``; ``aggregation``; and ``truncate`` for the last three. Row ``n`` is sampled
    as prompt ``n`` of one ``generate`` of all; a seed that is drawn, where none is given, stays with the job.

    Every row is checked before the model is loaded. One that cannot be used is an error that names its line, or
    (``bad_rows="report"``) becomes an output row with ``error``. Memory holds a window of rows at a time, sorted by
    length into batches of at most ``batch_tokens`` tokens, padding and new tokens included. With ``ordered`` False rows
    are written as they come, each with its input ``line``.

    Whatever ends the process, ``resume`` goes on: half a row is cut off, rows that are there are not done again, and
    the output is that of a job which nothing ended. Beside ``output`` lies ``<output>.job.json``, which says what it
    was made from; another bundle, task, option or input is refused. Without ``resume`` or ``force`` (which begins anew)
    an output that is there is refused.

    ``ray`` spreads the work over Ray Data, which needs ``helium-onnx[ray]``: ``auto`` takes this machine's cluster, or
    starts one for the job; else it is a cluster's address. ``workers`` are processes with a model each; they share
    the CPUs, or have ``threads`` each. The other arguments are those of ``load``; docs/batch.md has the details.

    Raises the errors of ``helium_onnx.errors``: TextError for the input, BatchError for the output and its job.
    """
    from helium_onnx.batching import run

    return run.batch(
        bundle,
        input,
        output,
        task=task,
        options=options,
        field=field,
        lines=lines,
        ordered=ordered,
        resume=resume,
        force=force,
        bad_rows=bad_rows,
        drop_text=drop_text,
        batch_tokens=batch_tokens,
        provider=provider,
        context_length=context_length,
        threads=threads,
        kernels=kernels,
        cache=cache,
        cache_dir=cache_dir,
        ray=ray,
        workers=workers,
        progress=progress,
    )


def inspect(path: str | os.PathLike[str], *, provider: str | None = None) -> dict[str, Any]:
    """What a bundle holds: graphs, inputs and outputs, operators, files, and where every byte of the weights is.

    With ``provider`` (``cpu``, ``cuda``, ``webgpu``, ``qnn`` or ``coreml``) instead: which nodes of the graphs that
    execution provider takes and which it leaves, and why; asked of ONNX Runtime where it can load the provider here.
    """
    from helium_onnx import inspection

    return inspection.inspect(path, provider=provider)


def verify(path: str | os.PathLike[str], *, progress: ProgressCallback | None = None) -> list[Check]:
    """Check a bundle from manifest to one real forward pass; the first check that fails ends the list."""
    from helium_onnx.progress import silent
    from helium_onnx.verification import verify_bundle

    return verify_bundle(path, progress=progress or silent)


@overload
def validate(
    path: str | os.PathLike[str],
    *,
    against: str | os.PathLike[str],
    prompts: list[str] | None = None,
    max_new_tokens: int = 64,
    provider: str = "auto",
    adapter: GivenAdapters = None,
    progress: ProgressCallback | None = None,
) -> ParityReport | TaskParityReport: ...
@overload
def validate(
    path: str | os.PathLike[str],
    *,
    against: str | os.PathLike[str],
    text: str | os.PathLike[str],
    limit: int | None = 100,
    max_tokens: int | None = None,
    max_new_tokens: int = 64,
    provider: str = "auto",
    adapter: GivenAdapters = None,
    progress: ProgressCallback | None = None,
) -> FidelityReport: ...
@overload
def validate(
    path: str | os.PathLike[str], *, golden: Literal[True], progress: ProgressCallback | None = None
) -> GoldenReport: ...
def validate(
    path: str | os.PathLike[str],
    *,
    against: str | os.PathLike[str] | None = None,
    prompts: list[str] | None = None,
    text: str | os.PathLike[str] | None = None,
    golden: bool = False,
    limit: int | None = 100,
    max_tokens: int | None = None,
    max_new_tokens: int = 64,
    provider: str = "auto",
    adapter: GivenAdapters = None,
    progress: ProgressCallback | None = None,
) -> ParityReport | TaskParityReport | FidelityReport | GoldenReport:
    """Hold a bundle against the checkpoint that it was exported from. Needs ``helium-onnx[eval]``.

    With ``against`` alone: logits and greedy tokens beside ``transformers``, on ``prompts`` (of a task without
    generation: hidden states or labels, a TaskParityReport). With ``text``, a file of
    JSON Lines: perplexity, KL divergence and more beside the PyTorch model in float32, over its first ``limit`` pages
    (None: all) of at most ``max_tokens`` tokens (default: 1024, or the context). ``golden``: beside published logits
    of kyutai/helium-1-preview-2b, which needs no checkpoint. ``provider`` runs the bundle, as in ``load``; ``adapter``
    is what was merged into it, as in ``export``.
    """
    if golden:
        if against is not None or text is not None or prompts is not None:
            raise errors.UsageError("golden takes no checkpoint, text or prompt", remedy="leave them out")
        from helium_onnx.evaluation.golden import validate_golden

        return validate_golden(path, progress=progress)
    if against is None:
        raise errors.UsageError("there is nothing to hold the bundle against", remedy="give a checkpoint: --against")
    if text is not None:
        if prompts is not None:
            raise errors.UsageError("prompts and a text exclude each other", remedy="leave one of them out")
        with _needs("eval", "torch", "onnx", "safetensors"):
            from helium_onnx.evaluation.measure import validate_text
        return validate_text(
            path,
            against=against,
            text=text,
            limit=limit,
            max_tokens=max_tokens,
            max_new_tokens=max_new_tokens,
            provider=provider,
            adapter=adapter,
            progress=progress,
        )
    with _needs("eval", "torch", "transformers", "safetensors"):
        from helium_onnx.evaluation import parity
    return parity.validate(
        path,
        against=against,
        prompts=prompts,
        max_new_tokens=max_new_tokens,
        provider=provider,
        adapter=adapter,
        progress=progress,
    )


def compare(
    paths: Sequence[str | os.PathLike[str]],
    *,
    against: str | os.PathLike[str],
    text: str | os.PathLike[str],
    limit: int | None = 100,
    max_tokens: int | None = None,
    max_new_tokens: int = 64,
    provider: str = "auto",
    adapter: GivenAdapters = None,
    progress: ProgressCallback | None = None,
) -> FidelityComparison:
    """Measure several bundles of one checkpoint on the same text, as ``validate`` does with ``text`` for one.

    The reference is computed once. ``provider`` runs the bundles, as in ``load``; ``adapter`` is what was merged into
    them, as in ``export``. Needs ``helium-onnx[eval]``.
    """
    with _needs("eval", "torch", "onnx", "safetensors"):
        from helium_onnx.evaluation import measure
    return measure.compare(
        paths,
        against=against,
        text=text,
        limit=limit,
        max_tokens=max_tokens,
        max_new_tokens=max_new_tokens,
        provider=provider,
        adapter=adapter,
        progress=progress,
    )


def overflow(
    checkpoint: str | os.PathLike[str],
    *,
    text: str | os.PathLike[str] | None = None,
    tokens: int | None = None,
    progress: ProgressCallback | None = None,
) -> OverflowReport:
    """Look at a checkpoint's largest activations, layer by layer: does it fit float16? Needs ``helium-onnx[eval]``.

    The model runs in float32 over ``tokens`` tokens (default: by its size, 2,048 for 2 B parameters) of ``text``, a
    file of JSON Lines (default: the shipped calibration text). A verdict other than ``safe`` asks for cuda-bf16.
    """
    with _needs("eval", "torch", "onnx", "onnx_ir", "onnxscript", "safetensors"):
        from helium_onnx.evaluation import overflow as check
    return check.overflow(checkpoint, text=text, tokens=tokens, progress=progress)


def bench(
    path: str | os.PathLike[str],
    *,
    prompt: Sequence[int] | None = None,
    past: Sequence[int] | None = None,
    batch: Sequence[int] | None = None,
    rounds: int | None = None,
    quick: bool = False,
    threads: int | None = None,
    provider: str = "auto",
    kernels: Literal["auto", "native", "onnxruntime"] = "auto",
    cache: bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: ProgressCallback | None = None,
) -> BenchReport:
    """Measure load, prefill and decode of a bundle on this machine, and what the machine itself would allow.

    ``prompt`` and ``past`` are numbers of tokens (default: 32, 128, 512, 2048 and 0, 512, 2048), ``batch`` numbers of
    rows (1, 4, 16); what exceeds the model's context or the memory is left out, and the report says so. Each case is
    measured in every one of ``rounds`` rounds (5); ``quick`` means fewer cases and rounds. ``threads``, ``provider``,
    ``kernels``, ``cache`` and ``cache_dir`` are as in ``load``. Takes minutes for a 2 B model; other programs disturb
    it.
    """
    from helium_onnx.benchmark import run

    return run.bench(
        path,
        prompt=prompt,
        past=past,
        batch=batch,
        rounds=rounds,
        quick=quick,
        threads=threads,
        provider=provider,
        kernels=kernels,
        cache=cache,
        cache_dir=cache_dir,
        progress=progress,
    )


def doctor(path: str | os.PathLike[str] | None = None) -> DoctorReport:
    """Look at this machine: what can run on it, and what is missing, with the remedy for each.

    Processor and memory, ONNX Runtime and its providers, NVIDIA's driver, GPUs and libraries, and for each shipped
    recipe whether the 2 B model fits; with ``path``, whether that bundle does. Raises nothing: what is broken is in
    the report.
    """
    from helium_onnx import diagnosis

    return diagnosis.doctor(path)


def list_recipes() -> tuple[Recipe, ...]:
    """The recipes that come with helium-onnx."""
    from helium_onnx import recipe

    return recipe.list_recipes()


class _needs:  # noqa: N801  reads as a statement: with _needs("export", ...)
    """Turn a missing package of an extra into a MissingDependencyError that names the extra."""

    def __init__(self, extra: str, *packages: str) -> None:
        self.extra, self.packages = extra, packages

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in self.packages:
            raise errors.MissingDependencyError(
                f"{error.name} is not installed",
                expected=f"helium-onnx with its [{self.extra}] extra",
                remedy=f"pip install 'helium-onnx[{self.extra}]'",
            ) from error
