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
from typing import TYPE_CHECKING, Any, Literal, overload

from helium_onnx import errors
from helium_onnx._version import __version__
from helium_onnx.errors import HeliumOnnxError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helium_onnx.benchmark.report import BenchReport
    from helium_onnx.bundle import Bundle
    from helium_onnx.diagnosis.report import DoctorReport
    from helium_onnx.evaluation.gates import Gates
    from helium_onnx.evaluation.golden import GoldenReport
    from helium_onnx.evaluation.overflow import OverflowReport
    from helium_onnx.evaluation.parity import ParityReport
    from helium_onnx.evaluation.report import FidelityComparison, FidelityReport
    from helium_onnx.generation.model import LanguageModel
    from helium_onnx.generation.result import GenerationResult
    from helium_onnx.progress import ProgressCallback, ProgressEvent
    from helium_onnx.recipe import Recipe
    from helium_onnx.verification import Check

__all__ = [
    "BenchReport",
    "Bundle",
    "Check",
    "DoctorReport",
    "FidelityComparison",
    "FidelityReport",
    "Gates",
    "GenerationResult",
    "GoldenReport",
    "HeliumOnnxError",
    "LanguageModel",
    "OverflowReport",
    "ParityReport",
    "ProgressEvent",
    "Recipe",
    "__version__",
    "bench",
    "compare",
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
    "BenchReport": "helium_onnx.benchmark.report",
    "Bundle": "helium_onnx.bundle",
    "Check": "helium_onnx.verification",
    "DoctorReport": "helium_onnx.diagnosis.report",
    "FidelityComparison": "helium_onnx.evaluation.report",
    "FidelityReport": "helium_onnx.evaluation.report",
    "Gates": "helium_onnx.evaluation.gates",
    "GenerationResult": "helium_onnx.generation.result",
    "GoldenReport": "helium_onnx.evaluation.golden",
    "LanguageModel": "helium_onnx.generation.model",
    "OverflowReport": "helium_onnx.evaluation.overflow",
    "ParityReport": "helium_onnx.evaluation.parity",
    "ProgressEvent": "helium_onnx.progress",
    "Recipe": "helium_onnx.recipe",
}


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
    recipe: str | os.PathLike[str] | Recipe = "cpu-int4",
    calibration: str | os.PathLike[str] | None = None,
    budget: str | None = None,
    max_kl: float | None = None,
    context_length: int | None = None,
    force: bool = False,
    revision: str | None = None,
    offline: bool = False,
    progress: ProgressCallback | None = None,
) -> Bundle:
    """Turn a Helium checkpoint into a bundle at ``out``. Needs ``helium-onnx[export]``.

    ``checkpoint`` is a local folder or a Hub id (``kyutai/helium-1-preview-2b``, at ``revision``; ``offline`` uses
    the Hub's cache alone). ``recipe`` is a shipped recipe's name or the path of one's own TOML file. ``out`` must not
    exist, unless ``force`` replaces a bundle there. ``progress`` gets a ``ProgressEvent`` for each step.

    ``calibration`` is a file of JSON Lines (``{"text": ...}``) like what the model will see, for recipes that weigh
    errors by activations (GPTQ; k-quant, if given; an int8 key/value cache); a text in six languages is shipped.
    ``budget`` (``"1.2GB"`` for the bundle, or ``"4.8bits"`` a weight) or ``max_kl`` (nats a token, estimated) lets the
    exporter choose 4 or 8 bits and a block size for each matrix, by what each costs; the manifest keeps the choice.
    ``context_length`` is that of graphs with fixed shapes, in place of the recipe's (``graph.context``).

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
        recipe=recipe,
        calibration=calibration,
        budget=budget,
        max_kl=max_kl,
        context_length=context_length,
        force=force,
        revision=revision,
        offline=offline,
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

    ``target`` is ``android-qnn`` or ``web``. ``android-qnn`` compiles prefill and decode for the NPU of a Snapdragon
    chip, ``soc`` (``75/57`` or ``SM8650``; an unknown one is an error that lists them); it needs onnxruntime-qnn, and a
    bundle of a recipe for QNN. The graphs share one copy of the weights, unless ``share_weights`` is False: the
    emulator on x86 can load no others. ``web`` takes what ``@helium-onnx/web`` loads in a browser.

    ``dest`` must not exist, unless ``force`` replaces a package there, and lies apart from the bundle. ``progress``
    gets a ``ProgressEvent`` for each step. The package is a bundle, complete or absent, whatever happens. Raises the
    errors of ``helium_onnx.errors``: a ProviderError where the bundle's graphs are not what the target takes.
    """
    from helium_onnx import packaging

    return packaging.package(
        path, dest, target=target, soc=soc, share_weights=share_weights, force=force, progress=progress
    )


def load(
    path: str | os.PathLike[str],
    *,
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
) -> LanguageModel:
    """Load a bundle for generation. Needs no torch.

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
    verifies, several at a time.
    """
    from helium_onnx.bundle import Bundle
    from helium_onnx.progress import silent
    from helium_onnx.resources import check_address_space, load_bytes

    bundle = Bundle.open(path)
    drafting = None if draft is None else Bundle.open(draft)
    total_bytes = bundle.total_bytes + (0 if drafting is None else drafting.total_bytes)
    check_address_space(load_bytes(total_bytes), "load")
    from helium_onnx.loading import load_model

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
    progress: ProgressCallback | None = None,
) -> ParityReport: ...
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
    progress: ProgressCallback | None = None,
) -> ParityReport | FidelityReport | GoldenReport:
    """Hold a bundle against the checkpoint that it was exported from. Needs ``helium-onnx[eval]``.

    With ``against`` alone: logits and greedy tokens beside ``transformers``, on ``prompts``. With ``text``, a file of
    JSON Lines: perplexity, KL divergence and more beside the PyTorch model in float32, over its first ``limit`` pages
    (None: all) of at most ``max_tokens`` tokens (default: 1024, or the context). ``golden``: beside published logits
    of kyutai/helium-1-preview-2b, which needs no checkpoint. ``provider`` runs the bundle, as in ``load``.
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
            progress=progress,
        )
    with _needs("eval", "torch", "transformers", "safetensors"):
        from helium_onnx.evaluation import parity
    return parity.validate(
        path, against=against, prompts=prompts, max_new_tokens=max_new_tokens, provider=provider, progress=progress
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
    progress: ProgressCallback | None = None,
) -> FidelityComparison:
    """Measure several bundles of one checkpoint on the same text, as ``validate`` does with ``text`` for one.

    The reference is computed once. ``provider`` runs the bundles, as in ``load``. Needs ``helium-onnx[eval]``.
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
