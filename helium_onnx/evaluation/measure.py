"""The deep form of validate, and compare: bundles beside the PyTorch model in float32, on a file of texts.

In this order, so that two models are never in memory at once: the reference's hidden states of all windows, layer by
layer; then each bundle's logits beside the reference's, chunk by chunk, and its greedy texts; then the reference over
those texts; then both models' layers side by side.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from helium_onnx import inspection
from helium_onnx._version import __version__
from helium_onnx.adapters.given import GivenAdapters
from helium_onnx.adapters.merging import merged_with
from helium_onnx.bundle import Bundle
from helium_onnx.checkpoint import Checkpoint
from helium_onnx.config import HeliumConfig
from helium_onnx.errors import BundleError, ContextOverflowError, UsageError
from helium_onnx.evaluation.bundle_weights import BundleWeights
from helium_onnx.evaluation.device import check_device, device_name
from helium_onnx.evaluation.fidelity import Scores, max_abs_by_position, score, summarize
from helium_onnx.evaluation.greedy import PROMPT_TOKENS, Continuation, GreedyRow, continue_greedily, divergence, prompts
from helium_onnx.evaluation.layers import TOKENS, WINDOWS, LayerRow, layer_errors
from helium_onnx.evaluation.origin import other_checkpoint
from helium_onnx.evaluation.reference import Head, HiddenStates, stream
from helium_onnx.evaluation.report import Conditions, FidelityComparison, FidelityReport, Histogram, Storage
from helium_onnx.evaluation.worst import worst_positions
from helium_onnx.hub import resolve_checkpoint
from helium_onnx.loading import load_tokenizer
from helium_onnx.progress import ProgressCallback, ProgressEvent, silent
from helium_onnx.runtimes.opening import open_session
from helium_onnx.runtimes.session import Session
from helium_onnx.texts import Window, read_texts, token_windows
from helium_onnx.tokenizer import Tokenizer

MAX_TOKENS = 1024
#: Positions whose logits exist at once, of both models: 49 MB each for a vocabulary of 48000.
CHUNK = 256
#: log10 of KL divergences: four bins a decade, from what rounding leaves to what no sane model reaches.
_BINS = np.arange(-16, 2.01, 0.25)


@dataclass(frozen=True)
class _Measured:
    """What a bundle's session gave: scores of each window, its greedy texts, its threads (0: on a GPU)."""

    windows: list[Scores]
    continuations: list[Continuation]
    threads: int


def validate_text(
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
) -> FidelityReport:
    """One bundle, as :func:`compare` measures several."""
    return compare(
        [path],
        against=against,
        text=text,
        limit=limit,
        max_tokens=max_tokens,
        max_new_tokens=max_new_tokens,
        provider=provider,
        adapter=adapter,
        progress=progress,
    ).reports[0]


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
    """Measure the bundles at ``paths`` beside the checkpoint ``against`` on the texts of the file ``text``.

    The first ``limit`` pages are scored (None: all), of each its first ``max_tokens`` tokens, ``<s>`` among them
    (default: 1024, or the model's context where that is less). Greedy texts have ``max_new_tokens`` tokens.
    ``provider`` runs them, as in ``helium_onnx.load``; ``adapter`` is what was merged into them, as in
    ``helium_onnx.export``.

    Raises:
        UsageError: no bundle, a number out of range, or a checkpoint or bundle of another model than the first bundle.
        ContextOverflowError: a window, or a prompt and its new tokens, do not fit the model's context.
        TextError: the file cannot be used.
        ProviderError: a bundle cannot run on ``provider``, or not on this machine.
        BundleError, CheckpointError, TokenizerError: one of these cannot be read.
    """
    report = progress or silent
    if not paths:
        raise UsageError("there is no bundle", found="an empty list", expected="at least one folder")
    bundles = [Bundle.open(path) for path in paths]
    config = _config(bundles[0])
    if max_new_tokens < 1:
        raise UsageError("max_new_tokens is out of range", found=max_new_tokens, expected="an integer from 1")
    longest = min(MAX_TOKENS, config.max_position_embeddings) if max_tokens is None else max_tokens
    if (needed := max(longest, PROMPT_TOKENS + max_new_tokens)) > config.max_position_embeddings:
        raise ContextOverflowError(
            "what is to be measured does not fit the model's context",
            found=f"windows of {longest} tokens; prompts of {PROMPT_TOKENS} and {max_new_tokens} new tokens",
            expected=f"at most {config.max_position_embeddings} tokens each",
            remedy="ask for fewer tokens",
        )
    tokenizer = load_tokenizer(bundles[0])
    windows = token_windows(read_texts(text), tokenizer, max_tokens=longest, min_tokens=min(64, longest), limit=limit)
    checkpoint = merged_with(Checkpoint.open(resolve_checkpoint(against)), adapter)
    for bundle in bundles:
        _check_same_model(bundle, bundles[0], config)
        check_device(bundle, provider)
    _check_checkpoint(checkpoint, config)
    warnings = [other_checkpoint(bundle, checkpoint, report) for bundle in bundles]

    # The last token of a window is only predicted.
    hidden = stream(checkpoint, [window.ids[:-1] for window in windows], report)
    head = Head(checkpoint)
    measured = [
        _measure(bundle, provider, windows, hidden, head, needed, max_new_tokens, config.eos_token_ids, report)
        for bundle in bundles
    ]
    del hidden
    greedy = _divergences(checkpoint, head, [m.continuations for m in measured], report)
    del head
    short = [window.ids[:TOKENS] for window in windows[:WINDOWS]]
    layers = layer_errors(checkpoint, [BundleWeights(bundle) for bundle in bundles], short, report)
    reports = []
    for index, bundle in enumerate(bundles):
        conditions = Conditions(
            against=os.fspath(against),
            text=os.fspath(text),
            windows=len(windows),
            tokens=sum(len(window.ids) for window in windows),
            max_tokens=longest,
            prompt_tokens=PROMPT_TOKENS,
            max_new_tokens=max_new_tokens,
            threads=measured[index].threads,
            machine="; ".join(filter(None, [device_name(bundle, provider), _machine()])),
            versions={
                "helium-onnx": __version__,
                **{package.__name__: package.__version__ for package in (ort, torch, np)},
                "python": platform.python_version(),
            },
        )
        reports.append(
            _report(
                bundle, warnings[index], conditions, windows, measured[index].windows, tokenizer, greedy[index],
                layers[index],
            )
        )  # fmt: skip
    return FidelityComparison(tuple(reports))


def _measure(
    bundle: Bundle,
    provider: str,
    windows: Sequence[Window],
    hidden: HiddenStates,
    head: Head,
    context_length: int,
    max_new_tokens: int,
    eos_token_ids: tuple[int, ...],
    report: ProgressCallback,
) -> _Measured:
    # cache=False: the session hashes the bundle's files, which are read here for the first time.
    session = open_session(bundle, provider=provider, context_length=context_length, cache=False, progress=report)
    try:
        scores = score_windows(session, windows, hidden, head, report, stage=f"compare {bundle.path.name}")
        report(ProgressEvent("greedy", bundle.path.name))
        continuations = continue_greedily(
            session, prompts(windows), max_new_tokens=max_new_tokens, eos_token_ids=eos_token_ids
        )
    finally:
        session.close()
    return _Measured(scores, continuations, getattr(session, "threads", 0))


def score_windows(
    session: Session,
    windows: Sequence[Window],
    hidden: HiddenStates,
    head: Head,
    report: ProgressCallback,
    *,
    stage: str = "compare",
) -> list[Scores]:
    """The session's logits beside the reference's (``hidden``, through ``head``), ``CHUNK`` positions at a time.

    ``report`` counts bytes of logits that were compared.
    """
    total = 4 * session.vocab_size * sum(len(window.ids) - 1 for window in windows)
    done = 0
    scores = []
    for number, window in enumerate(windows):
        ids: NDArray[np.int64] = np.array([window.ids], np.int64)
        past = session.new_past(1)
        parts = []
        for start in range(0, ids.shape[1] - 1, CHUNK):
            stop = min(start + CHUNK, ids.shape[1] - 1)
            logits = session.run("decode", ids[:, start:stop], past)[0]
            parts.append(score(head(hidden[number][start:stop]), logits, ids[0, start + 1 : stop + 1]))
            done += 4 * session.vocab_size * (stop - start)
            report(ProgressEvent(stage, f"text {number + 1} of {len(windows)}", done, total))
        scores.append(Scores.join(parts))
    return scores


def _divergences(
    checkpoint: Checkpoint, head: Head, texts: list[list[Continuation]], report: ProgressCallback
) -> list[list[GreedyRow]]:
    """Where the greedy texts of each bundle part from the reference's: one pass of the reference over all of them."""
    flat = [continuation for bundle in texts for continuation in bundle]
    hidden = stream(checkpoint, [c.ids for c in flat], report, stage="greedy reference")
    rows = iter([divergence(c, hidden, index, head) for index, c in enumerate(flat)])
    return [[next(rows) for _ in bundle] for bundle in texts]


def _report(
    bundle: Bundle,
    warning: str | None,
    conditions: Conditions,
    windows: Sequence[Window],
    scores: list[Scores],
    tokenizer: Tokenizer,
    greedy: list[GreedyRow],
    layers: list[LayerRow],
) -> FidelityReport:
    langs = sorted({window.lang for window in windows if window.lang is not None})
    by_language = {
        lang: summarize([s for s, window in zip(scores, windows, strict=True) if window.lang == lang]) for lang in langs
    }
    logs = np.log10(np.maximum(np.concatenate([s.kl for s in scores]), 1e-16))
    counts, edges = np.histogram(np.minimum(logs[np.isfinite(logs)], _BINS[-1]), _BINS)
    info = inspection.inspect(bundle.path)
    return FidelityReport(
        bundle=str(bundle.path),
        recipe=str(bundle.manifest.recipe["name"]),
        warning=warning,
        conditions=conditions,
        figures=summarize(scores),
        languages=by_language,
        max_abs_by_position=tuple(max_abs_by_position(scores).tolist()),
        histogram=Histogram(tuple(edges.tolist()), tuple(counts.tolist())),
        worst=worst_positions(windows, scores, tokenizer),
        greedy=tuple(greedy),
        layers=tuple(layers),
        storage=Storage(info["total_bytes"], info["weights"]["bytes"], info["weights"]["bits_per_weight"] or {}),
    )


def _config(bundle: Bundle) -> HeliumConfig:
    if bundle.task != "text-generation":
        raise BundleError(f"{bundle.path} does not generate text", found=bundle.task, expected="text-generation")
    return HeliumConfig.from_dict(bundle.model_config, source=f"{bundle.path}/helium.json")


def _check_same_model(bundle: Bundle, first: Bundle, config: HeliumConfig) -> None:
    """Windows are cut by the first bundle's tokenizer: another one would read other tokens."""

    def tokenizer(b: Bundle) -> str | None:
        return next((file.sha256 for file in b.manifest.files if file.path == "tokenizer.json"), None)

    if _config(bundle).vocab_size != config.vocab_size or tokenizer(bundle) != tokenizer(first):
        raise UsageError(
            f"{bundle.path} and {first.path} are not bundles of one model",
            found="different vocabularies or tokenizers",
            expected="bundles that were exported from the same checkpoint",
        )


def _check_checkpoint(checkpoint: Checkpoint, config: HeliumConfig) -> None:
    other = checkpoint.config
    if other.vocab_size != config.vocab_size:
        raise UsageError(
            f"{checkpoint.folder} is not the model of this bundle",
            found=f"a vocabulary of {other.vocab_size}",
            expected=f"{config.vocab_size}, the bundle's",
            remedy="pass the checkpoint that the bundle was exported from",
        )
    checkpoint.check_tensors(other)


def _machine() -> str:
    """The processor, its logical cores and the system."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {os.cpu_count()} logical cores, {platform.system()} {platform.machine()}"
